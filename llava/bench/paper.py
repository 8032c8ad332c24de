"""`llava bench paper`: the paper's tables as text, Markdown and JSON, each with room for a column of ours.

The numbers stand in llava/paper.py, on the ground floor, because the report of `llava eval` shows some of them, too.
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from llava.paper import TABLES, PaperTable
from llava.text_table import markdown_table, text_table

ABSENT = "-"


def paper_cells(table: PaperTable, ours: Mapping[str, str] | None = None) -> list[list[str]]:
    """The table's head and rows, as text_table and markdown_table take them.

    Args:
        table: of llava/paper.py.
        ours: {run: what a last column, `ours`, says of it}; no such column for None.
    """
    columns = table.columns
    decimals = {name: max(_decimals(row[name]) for row in table.rows.values() if name in row) for name in columns}
    rows = [["run", *columns, *(["ours"] if ours is not None else [])]]
    for run, row in table.rows.items():
        cells = [f"{row[name]:.{decimals[name]}f}" if name in row else ABSENT for name in columns]
        rows.append([run, *cells, *([ours.get(run, ABSENT)] if ours is not None else [])])
    return rows


def _decimals(value: float) -> int:
    return len(f"{value:g}".partition(".")[2])


def render_text(names: list[str]) -> str:
    """The tables of these names, aligned."""
    return "\n\n".join(
        "\n".join([_title(name), "", text_table(paper_cells(TABLES[name]), right=[False, True]), *_notes(TABLES[name])])
        for name in names
    )


def render_markdown(names: list[str]) -> str:
    """The tables of these names as Markdown."""
    return "\n\n".join(
        "\n\n".join(
            [
                f"### {_title(name)}",
                markdown_table(paper_cells(TABLES[name])),
                *(["\n".join(f"- {line}" for line in notes)] if (notes := _notes(TABLES[name])) else []),
            ]
        )
        for name in names
    )


def as_json(names: list[str]) -> dict[str, Any]:
    """{table: {title, rows: {run: {benchmark: value}}, notes}}."""
    return {name: asdict(TABLES[name]) for name in names}


def _title(name: str) -> str:
    table = TABLES[name]
    return f"{f'Table {name}' if name.isupper() else name.capitalize()}: {table.title}"


def _notes(table: PaperTable) -> list[str]:
    return [f"{run}: {note}" for run, note in table.notes.items()]
