"""What `llava data check` found: the table, and the files of its report folder."""

import json
import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from llava.data.check import KINDS
from llava.data.mixture import ExpectedRows
from llava.errors import LlavaError

SHOWN_ROWS = 100  # bad rows that are printed where no report folder keeps them all


class BadRow(NamedTuple):
    """One fault. row: counted from 1; 0 when the whole file cannot be read."""

    file: str
    row: int
    id: str | None
    kind: str
    message: str


@dataclass
class FileReport:
    """What was found in one data file.

    rows: it holds. taken: the strategy takes. bad: rows with a fault. complete: the file could be read to its end.
    """

    file: str
    sampling_strategy: str
    expected_rows: ExpectedRows | None
    rows: int = 0
    taken: int = 0
    bad: int = 0
    counts: Counter = field(default_factory=Counter)
    complete: bool = True

    @property
    def warning(self) -> str | None:
        """A number of rows that is not the expected one, with both numbers."""
        if not self.complete or self.expected_rows is None or self.expected_rows.fits(self.rows):
            return None
        return f"{self.file} has {self.rows:,} rows, expected {self.expected_rows}"

    def to_dict(self) -> dict:
        """The content of report.json: numbers, and one per kind of fault."""
        return {
            "file": self.file,
            "sampling_strategy": self.sampling_strategy,
            "rows": self.rows,
            "expected_rows": self.expected_rows and self.expected_rows.rows,
            "taken": self.taken,
            "bad": self.bad,
            **{kind: self.counts[kind] for kind in KINDS},
        }


class BadRowPrinter:
    """Prints bad rows, the first 100 of them."""

    def __init__(self, stream):
        self.stream, self.count = stream, 0

    def __call__(self, row: BadRow) -> None:
        self.count += 1
        if self.count <= SHOWN_ROWS:
            where = f"{row.file} row {row.row} (id {row.id}) {row.kind}: " if row.row else ""
            print(f"fault: {where}{row.message}", file=self.stream)

    def finish(self, reports: list[FileReport]) -> None:
        if self.count > SHOWN_ROWS:
            print(f"and {self.count - SHOWN_ROWS} more faults; --out DIR keeps all", file=self.stream)


class BadRowFile:
    """Writes bad rows and, at the end, the table to a report folder: bad.jsonl and report.json, whole or not at all."""

    def __init__(self, folder: Path):
        self.folder, self.count = folder, 0
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.stream = open(folder / ".bad.jsonl.partial", "w", encoding="utf-8")  # noqa: SIM115
        except OSError as error:
            raise LlavaError(f"--out {folder} cannot be written: {error.strerror}") from None

    def __call__(self, row: BadRow) -> None:
        self.count += 1
        self.stream.write(json.dumps(row._asdict(), ensure_ascii=False) + "\n")

    def finish(self, reports: list[FileReport]) -> None:
        self.stream.close()
        table = self.folder / ".report.json.partial"
        table.write_text(json.dumps([report.to_dict() for report in reports], indent=2) + "\n", encoding="utf-8")
        for name in ("bad.jsonl", "report.json"):
            os.replace(self.folder / f".{name}.partial", self.folder / name)
        print(f"bad rows: {self.folder / 'bad.jsonl'}")


def render_table(reports: list[FileReport]) -> str:
    """One line per data file and one for all: rows, taken, bad, and how often each kind of fault was found."""
    kinds = [kind for kind in KINDS if any(report.counts[kind] for report in reports)]
    total = FileReport("total", "", None)
    for report in reports:
        total.rows += report.rows
        total.taken += report.taken
        total.bad += report.bad
        total.counts += report.counts
    lines = [["rows", "taken", "bad", *kinds, "file"]]
    for report in [*reports, total]:
        numbers = [report.rows, report.taken, report.bad, *(report.counts[kind] for kind in kinds)]
        lines.append([*(f"{number:,}" for number in numbers), f"{report.file}  {report.sampling_strategy}".strip()])
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]) - 1)]
    return "\n".join("  ".join([*(text.rjust(width) for text, width in zip(line, widths)), line[-1]]) for line in lines)
