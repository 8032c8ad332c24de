"""The rows of the bench of fusion: every method that there is, variants of methods, and controls. Imports no torch.

A row is data: a method, what its section `fusion` says, and a sentence. A method that is added to llava/fusion is a row
without a line here, and one more where it has another start (control c5).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from llava.arguments import unknown
from llava.errors import LlavaError
from llava.fusion.config import FusionConfig
from llava.fusion.methods import KINDS

REFERENCE = "none"  # the row that all differences are to


@dataclass(frozen=True)
class Row:
    """One line of the table.

    name: of the row. method: of llava/fusion. about: a sentence. section: the keys of `fusion` that differ from the
    method's defaults.
    """

    name: str
    method: str
    about: str
    section: dict[str, Any] = field(default_factory=dict)


VARIANTS = [
    Row("manager_adaptive", "manager", "adaptive managers (AAUM), asking with the question too", {"query": "cross"}),
    Row(
        "manager_first_layer",
        "manager",
        "control c2: one manager, before layer 0: depth without injection",
        {"injection_layers": [0]},
    ),
    Row(
        "manager_last",
        "manager",
        "control c1: the last map in the place of all: injection without depth",
        {"maps": "last"},
    ),
    Row(
        "manager_in_order", "manager", "control c3: a share of the maps each, shallow ones early", {"maps": "in_order"}
    ),
    Row("manager_permuted", "manager", "control c3: the same shares, permuted by a fixed draw", {"maps": "permuted"}),
    Row(
        "layer_select_deep_to_early",
        "layer_select",
        "control c6: the deepest state before the earliest layer",
        {"mapping": "deep_to_early"},
    ),
]


def all_rows() -> list[Row]:
    """The reference, the methods in their order, each with its variants behind it."""
    rows = []
    for kind in KINDS:
        rows.append(Row(kind.method, kind.method, _first_sentence(kind)))
        rows += [row for row in VARIANTS if row.method == kind.method]
        if any(one.name == "initialisation" for one in fields(kind)):
            about = f"control c5: {kind.method} that begins as the baseline"
            rows.append(Row(f"{kind.method}_zero", kind.method, about, {"initialisation": "zero"}))
    return rows


def rows_named(names: Sequence[str] | None) -> list[Row]:
    """The rows of these names, in the table's order; all for None. The reference is always the first.

    Raises LlavaError for a name that no row has.
    """
    rows = {row.name: row for row in all_rows()}
    for name in names or ():
        if name not in rows:
            raise LlavaError(f"--methods: {unknown('row', name, list(rows))}")
    chosen = set(rows if names is None else (REFERENCE, *names))
    return [row for name, row in rows.items() if name in chosen]


def _first_sentence(kind: type[FusionConfig]) -> str:
    return " ".join((kind.__doc__ or "").partition("\n\n")[0].split()).rstrip(".")
