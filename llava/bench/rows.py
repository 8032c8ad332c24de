"""The rows of the bench of fusion: every method that there is, variants of methods, and controls. Imports no torch.

A method that is added to llava/fusion is a row without a line here, as is an arm, a file of recipes/fusion. Where a
method has another start than one that equals the baseline, both are rows (control c5). Where it adds parameters, there
is a `none` of as many (control c4).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from llava.arguments import unknown
from llava.errors import LlavaError
from llava.fusion.config import FusionConfig
from llava.fusion.methods import KINDS
from llava.text_files import read_text
from llava.train.recipe.dotted import read_yaml

ARMS = Path("scripts/train/recipes/fusion")
REFERENCE = "none"  # the row that all differences are to
LIKE = "none_like_"  # in front of the name of the row whose number of parameters it has
ZERO = "_zero"  # behind the name of the method that begins as the baseline
# Other controls, and the row beside which each stands.
CONTROLS = {
    "manager_last": "manager",
    "manager_first_layer": "manager",
    "manager_permuted": "manager_in_order",
    "layer_select_deep_to_early": "layer_select",
}


@dataclass(frozen=True)
class Row:
    """One line of the table.

    name: of the row. arm: what trains, a file of ARMS. about: a sentence. section: keys of `fusion` that the arm does
    not have. like: the row whose number of parameters the projector is widened to; its width is known once that row is
    measured.
    """

    name: str
    arm: str
    about: str
    section: dict[str, Any] = field(default_factory=dict)
    like: str | None = None


VARIANTS = [
    Row("manager_adaptive", "manager", "Adaptive managers (AAUM), which ask with the question too", {"query": "cross"}),
]


def all_rows() -> list[Row]:
    """The reference; the methods in their order, each with its controls and variants behind it."""
    rows = []
    arms = {path.stem: read_yaml(str(path))["fusion"]["method"] for path in sorted(ARMS.glob("*.yaml"))}
    for kind in KINDS:
        name = kind.method
        rows.append(Row(name, name, _about_method(kind)))
        if name == REFERENCE:  # its other arms are of widths for models of one size
            continue
        rows += [Row(arm, arm, _about_arm(arm)) for arm, method in arms.items() if method == name != arm]
        rows += [row for row in VARIANTS if row.arm == name]
        if any(one.name == "initialisation" for one in fields(kind)):
            about = f"Control c5: {name} that begins as the baseline"
            rows.append(Row(f"{name}{ZERO}", name, about, {"initialisation": "zero"}))
        about = f"Control c4: none with a projector of as many parameters as {name}"
        rows.append(Row(f"{LIKE}{name}", REFERENCE, about, like=name))
    return rows


def controlled(name: str) -> str | None:
    """The row that the row of this name is a control of; None if it is none."""
    if name.startswith(LIKE):
        return name.removeprefix(LIKE)
    return name.removesuffix(ZERO) if name.endswith(ZERO) else CONTROLS.get(name)


def rows_named(names: Sequence[str] | None = None, without: Sequence[str] = ()) -> list[Row]:
    """The rows of these names, in the table's order; all for None. The reference is always the first.

    names, without: `*` stands for any letters. A row that another is like comes with it.
    Raises LlavaError for a name that no row has.
    """
    rows = {row.name: row for row in all_rows()}
    chosen = set(rows) if names is None else {REFERENCE} | _matching("--methods", names, rows)
    chosen -= _matching("--without", without, rows) - {REFERENCE}
    chosen |= {rows[name].like or name for name in chosen}
    return [row for name, row in rows.items() if name in chosen]


def _matching(flag: str, patterns: Sequence[str], rows: dict[str, Row]) -> set[str]:
    matching: set[str] = set()
    for pattern in patterns:
        names = {name for name in rows if fnmatchcase(name, pattern)}
        if not names:
            raise LlavaError(f"{flag}: {unknown('row', pattern, list(rows))}")
        matching |= names
    return matching


def _about_method(kind: type[FusionConfig]) -> str:
    """The first sentence of the docstring of what can be chosen of it."""
    return " ".join((kind.__doc__ or "").partition("\n\n")[0].split()).rstrip(".")


def _about_arm(arm: str) -> str:
    """The comment that its file begins with."""
    lines = re.match(r"(?:#.*\n)*", read_text(str(ARMS / f"{arm}.yaml")))
    return " ".join(line.lstrip("# ") for line in (lines[0] if lines else "").splitlines()).rstrip(".")
