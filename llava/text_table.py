"""Rows of texts as a table: as lines whose columns stand below each other, or in Markdown."""

from collections.abc import Sequence


def text_table(rows: Sequence[Sequence[str]], right: Sequence[bool]) -> str:
    """The rows as lines, two blanks between columns and none at a line's end.

    Args:
        rows: texts of one line each, as many in every row; the first row is usually the head.
        right: of each column, whether it ends, rather than begins, at one place, as numbers do; the last value holds
            for all columns behind it.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    sides = [*right, *[right[-1]] * (len(widths) - len(right))]

    def line(row: Sequence[str]) -> str:
        cells = zip(row, widths, sides, strict=True)
        return "  ".join(cell.rjust(width) if is_right else cell.ljust(width) for cell, width, is_right in cells)

    return "\n".join(line(row).rstrip() for row in rows)


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """The rows as a table of Markdown; the first is the head. A bar in a text is escaped."""
    head, *lines = [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows]
    return "\n".join([head, f"|{' --- |' * len(rows[0])}", *lines])
