"""A report's tables and what stands around them, laid out for the terminal and in Markdown."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from llava.text_table import markdown_table, text_table

WIDTH = 110  # of the terminal's tables: columns that do not fit beside the others stand below
HEAD_WIDTH = 19  # longer headings take several lines, where they have spaces


@dataclass(frozen=True)
class Table:
    """head, lines: the first `names` columns name a line; None is a rule between lines."""

    head: list[str]
    lines: list[list[str] | None]
    names: int


def text_page(
    title: str | None, tables: Sequence[Table], warnings: Sequence[str], notes: Sequence[str], width: int
) -> str:
    """What a terminal of `width` columns shows: the tables, what is to be watched, and how to read them."""
    parts = [] if title is None else [_wrapped(title, width)]
    parts += [block for table in tables for block in _aligned(table, width)]
    parts += ["\n".join(_wrapped(f"WARNING {line}", width) for line in warnings)] if warnings else []
    parts.append("\n".join(_wrapped(line, width) for line in notes))
    return "\n\n".join(parts) + "\n"


def markdown_page(title: str | None, tables: Sequence[Table], warnings: Sequence[str], notes: Sequence[str]) -> str:
    """The same in GitHub's Markdown, every table whole and without its rules."""
    parts = [] if title is None else [f"## {title}"]
    parts += ["\n".join(f"> **Warning:** {line}" for line in warnings)] if warnings else []
    parts += [markdown_table([table.head, *(line for line in table.lines if line is not None)]) for table in tables]
    parts.append("\n".join(f"- {line}" for line in notes))
    return "\n\n".join(parts) + "\n"


def _wrapped(line: str, width: int) -> str:
    return textwrap.fill(line, width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def _aligned(table: Table, width: int) -> list[str]:
    """The table as one or several: columns that do not fit in `width` beside the others stand below."""
    return [_block(table, columns) for columns in _blocks(table, width)]


def _blocks(table: Table, width: int) -> list[list[int]]:
    """The columns of each table that is printed: as many as fit in `width`, at least one beside those that name."""
    sizes = _sizes(table)
    names = list(range(table.names))
    blocks: list[list[int]] = [[]]
    for column in range(table.names, len(table.head)):
        if blocks[-1] and sum(sizes[index] + 2 for index in [*names, *blocks[-1], column]) - 2 > width:
            blocks.append([])
        blocks[-1].append(column)
    return [[*names, *block] for block in blocks]


def _sizes(table: Table) -> list[int]:
    lines = [[max(_head_lines(head), key=len) for head in table.head]]
    lines += [line for line in table.lines if line is not None]
    return [max(map(len, cells)) for cells in zip(*lines, strict=True)]


def _head_lines(head: str) -> list[str]:
    return textwrap.wrap(head, HEAD_WIDTH, break_long_words=False, break_on_hyphens=False)


def _block(table: Table, columns: list[int]) -> str:
    sizes = _sizes(table)
    heads = [_head_lines(head) for head in table.head]
    height = max(len(heads[column]) for column in columns)
    heads = [[*[""] * (height - len(head)), *head] for head in heads]
    rule = ["-" * size for size in sizes]
    rows = [[head[-height:][index] for head in heads] for index in range(height)]
    rows += [rule, *(rule if line is None else line for line in table.lines)]
    return text_table([[row[column] for column in columns] for row in rows], right=[False])
