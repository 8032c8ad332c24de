"""Sweeps: one arm with other and other values of its keys, from a YAML file. Imports no torch.

    title: How often managers stand before a layer of the language model (Figure 11)
    axis: managers
    arm: manager
    tiling: square
    values:
      times_2: {interval: N / 2}
      times_6: {interval: N / 6}

A value is a row of the table: its name, and keys of `fusion`. L stands for the layers of the tower that are used, N for
those of the language model; what is computed from them is rounded up. Values that come to the same keys at the sizes at
hand are one row, the first of them.
"""

import ast
import math
import operator
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, get_args

from llava.arguments import unknown
from llava.bench.data_sets import parts_of
from llava.bench.entry import Tiling
from llava.bench.rows import ARMS, REFERENCE, Row, rows_named
from llava.errors import LlavaError
from llava.train.recipe.dotted import read_yaml

KEYS = ("title", "axis", "arm", "tiling", "values")
NAME = re.compile(r"[A-Za-z0-9_]+")  # of a value: it is part of a folder's name
DEPTHS = re.compile(r"\b[LN]\b")
OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}


@dataclass(frozen=True)
class Sweep:
    """A sweep at the sizes at hand.

    name: of its file. title, axis: of its picture. tiling: of all rows, where nobody names another. rows: one for each
    value that is another. remarks: what L and N are, and which values are one row.
    """

    name: str
    title: str
    axis: str
    tiling: str
    rows: tuple[Row, ...]
    remarks: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """What the table and the picture need."""
        values = [row.name for row in self.rows if row.name != REFERENCE]
        return {"title": self.title, "axis": self.axis, "values": values, "remarks": list(self.remarks)}


def read_sweep(file: Path, data: Sequence[str], parts: str) -> Sweep:
    """The sweep of a file, with the reference as its first row, for the parts of these data sets.

    Raises LlavaError for a file that is no sweep, and where the data sets' parts differ in their numbers of layers.
    """
    depths = {name: _depths(name, parts) for name in data}
    if len(set(map(tuple, (of.values() for of in depths.values())))) > 1:
        told = ", ".join(f"{name} {of['L']} and {of['N']}" for name, of in depths.items())
        raise LlavaError(f"{file}: the parts differ in layers of tower and language model ({told}); one --data each")
    at_hand = depths[data[0]]
    described = _checked(file)
    rows, remarks = [], [f"L = {at_hand['L']} layers of the tower, N = {at_hand['N']} of the language model"]
    for name, keys in described["values"].items():
        section = {key: _at(f"{file}: values.{name}.{key}", value, at_hand) for key, value in keys.items()}
        same = next((row for row in rows if row.section == section), None)
        if same is not None:
            remarks.append(f"{name} is {same.name} here")
            continue
        about = ", ".join(f"{key} {value}" for key, value in section.items())
        rows.append(Row(name, described["arm"], about, section))
    return Sweep(
        file.stem,
        described["title"],
        described["axis"],
        described["tiling"],
        (*rows_named([REFERENCE]), *rows),
        tuple(remarks),
    )


def _depths(data: str, parts: str) -> dict[str, int]:
    of_parts = parts_of(data, parts)
    return {"L": of_parts.vision_layers, "N": of_parts.text_layers}


def _checked(file: Path) -> dict[str, Any]:
    """What the file says; whether there are such keys of `fusion`, its recipe tells."""
    described = read_yaml(str(file))
    for key in described:
        if key not in KEYS:
            raise LlavaError(f"{file}: {unknown('key', str(key), KEYS)}")
    for key in KEYS:
        if key not in described:
            raise LlavaError(f"{file}: {key} is missing")
    arms = sorted(path.stem for path in ARMS.glob("*.yaml"))
    for key, choices in (("arm", arms), ("tiling", get_args(Tiling))):
        if described[key] not in choices:
            raise LlavaError(f"{file}: {key}: {unknown(key, str(described[key]), choices)}")
    values = described["values"]
    if not isinstance(values, dict) or not values:
        raise LlavaError(f"{file}: values must map names to keys of fusion, found {values!r}")
    for name, keys in values.items():
        if not NAME.fullmatch(str(name)) or str(name) == REFERENCE:
            raise LlavaError(f"{file}: values: a name has letters, digits and _ and is not {REFERENCE}; found {name!r}")
        if not isinstance(keys, dict):
            raise LlavaError(f"{file}: values.{name} must map keys of fusion to values, found {keys!r}")
    described["values"] = {str(name): keys for name, keys in values.items()}
    return described


def _at(where: str, value: Any, depths: Mapping[str, int]) -> Any:
    """A value at these depths: texts with L or N are computed, also in lists."""
    if isinstance(value, list):
        return [_at(where, one, depths) for one in value]
    if not isinstance(value, str) or not DEPTHS.search(value):
        return value
    try:
        return math.ceil(_computed(ast.parse(value, mode="eval").body, depths))
    except (SyntaxError, ZeroDivisionError, ValueError) as error:
        raise LlavaError(f"{where}: {value!r} cannot be computed from L and N ({error})") from error


def _computed(node: ast.expr, depths: Mapping[str, int]) -> Fraction:
    """An expression of whole numbers, L and N. Raises ValueError for anything else."""
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        return Fraction(OPERATORS[type(node.op)](_computed(node.left, depths), _computed(node.right, depths)))
    if isinstance(node, ast.Name) and node.id in depths:
        return Fraction(depths[node.id])
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return Fraction(node.value)
    raise ValueError(f"{ast.unparse(node)!r} is neither a whole number, L, N nor +, -, *, /, //, % of them")
