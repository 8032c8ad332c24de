"""Each control beside the row whose idea it takes away, whose start it changes or whose size it has."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from llava.bench.cells import by_seed, interval, marked
from llava.bench.results import answers_of
from llava.bench.rows import controlled
from llava.bench.statistics import RowScore, score_rows

NOTE = (
    "row - control: what the control lacks, or has otherwise, is worth; intervals and star as above. c1 depth, c2 the "
    "injection, c3 the order of the maps, c4 more than parameters, c5 the method's own start, c6 which layer goes where"
)


@dataclass(frozen=True)
class ControlLine:
    """A row's score on a data set, with the differences to its control."""

    data: str
    row: str
    control: str
    score: RowScore


def control_lines(results: dict[str, Any]) -> list[ControlLine]:
    """Of every control that has all its seeds, as the row has beside which it stands; in the order of the rows."""
    lines = []
    for name in results["data"]:
        documents, kinds, right = answers_of(results, name)
        for control in right:
            row = controlled(control)
            if row in right:
                scores = score_rows(name, documents, kinds, {one: right[one] for one in (row, control)}, control)
                lines.append(ControlLine(name, row, control, scores[row]))
    return lines


def control_columns(results: dict[str, Any]) -> list[tuple[str, Callable[[ControlLine], str]]]:
    """(head, cell of a line) of every column."""
    return [
        *([("data", lambda line: line.data)] if len(results["data"]) > 1 else []),
        ("row", lambda line: line.row),
        ("control", lambda line: line.control),
        ("row - control", lambda line: marked(line.score)),
        ("boot", lambda line: interval(line.score.difference)),
        ("t", lambda line: interval(line.score.difference_t)),
        ("by seed", lambda line: by_seed(line.score)),
    ]


def control_cells(results: dict[str, Any]) -> list[list[str]]:
    """The table's rows, heads first; none where no control is complete."""
    parts, lines = control_columns(results), control_lines(results)
    return [[head for head, _ in parts], *([cell(line) for _, cell in parts] for line in lines)] if lines else []
