"""What `llava data check` found: the table, and the files of its report folder."""

import json
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TextIO

from llava.data.inspect import KINDS
from llava.data.mixture import ExpectedRows
from llava.data.notes import NOTES
from llava.errors import LlavaError
from llava.files import whole_file
from llava.printable import ID_LIMIT, one_line, visible
from llava.text_table import text_table

SHOWN_ROWS = 100  # faults, and notes, that are printed where no report folder keeps them all


class BadRow(NamedTuple):
    """One fault or note. row: counted from 1; 0 when the whole file cannot be read. kind: of KINDS or NOTES."""

    file: str
    row: int
    id: str | None
    kind: str
    message: str

    @property
    def is_note(self) -> bool:
        """Whether the sample is used all the same."""
        return self.kind in NOTES


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
        return f"{one_line(self.file)} has {self.rows:,} rows, expected {self.expected_rows}"

    def to_dict(self) -> dict:
        """The content of report.json: numbers, and one per kind of fault and note."""
        return {
            "file": self.file,
            "sampling_strategy": self.sampling_strategy,
            "rows": self.rows,
            "expected_rows": self.expected_rows and self.expected_rows.rows,
            "taken": self.taken,
            "bad": self.bad,
            **{kind: self.counts[kind] for kind in (*KINDS, *NOTES)},
        }


class BadRowPrinter:
    """Prints faults and notes, the first 100 of each. count: of the faults."""

    def __init__(self, stream: TextIO):
        self.stream, self.count, self.notes = stream, 0, 0

    def __call__(self, row: BadRow) -> None:
        """Takes one row, as it is met."""
        self.notes += row.is_note
        self.count += not row.is_note
        if (self.notes if row.is_note else self.count) <= SHOWN_ROWS:
            name = "" if row.id is None else f" (id {one_line(row.id, ID_LIMIT)})"
            where = f"{one_line(row.file)} row {row.row}{name} {row.kind}: " if row.row else ""
            print(f"{'note' if row.is_note else 'fault'}: {where}{row.message}", file=self.stream)

    def finish(self, reports: list[FileReport]) -> None:
        """Says how many more there are than were printed."""
        for count, things in ((self.count, "faults"), (self.notes, "notes")):
            if count > SHOWN_ROWS:
                print(f"and {count - SHOWN_ROWS} more {things}; --out DIR keeps all", file=self.stream)


class BadRowFile:
    """Writes a report folder, at the end, each file whole or not at all.

    Faults are in bad.jsonl, notes in notes.jsonl, the table in report.json. count: of the faults.
    What UTF-8 cannot hold is written as JSON's escape for it, so that a reader gets the text as it was.
    """

    def __init__(self, folder: Path):
        self.folder, self.count = folder, 0
        self._files = ExitStack()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.faults, self.notes = (self._open(name) for name in ("bad.jsonl", "notes.jsonl"))
        except OSError as error:
            raise LlavaError(f"--out {folder} cannot be written: {error.strerror}") from None

    def _open(self, name: str) -> TextIO:
        return self._files.enter_context(whole_file(self.folder / name, errors="backslashreplace"))

    def __call__(self, row: BadRow) -> None:
        """Takes one row, as it is met."""
        self.count += not row.is_note
        stream = self.notes if row.is_note else self.faults
        stream.write(json.dumps(row._asdict(), ensure_ascii=False) + "\n")

    def finish(self, reports: list[FileReport]) -> None:
        """Puts the files in place."""
        with self._files:
            table = self._open("report.json")
            table.write(json.dumps([report.to_dict() for report in reports], indent=2) + "\n")
        print(f"bad rows: {visible(str(self.folder / 'bad.jsonl'))}")


def render_table(reports: list[FileReport]) -> str:
    """One line per data file and one for all: rows, taken, bad, and how often each kind of fault and note."""
    kinds = [kind for kind in (*KINDS, *NOTES) if any(report.counts[kind] for report in reports)]
    total = FileReport("total", "", None)
    for report in reports:
        total.rows += report.rows
        total.taken += report.taken
        total.bad += report.bad
        total.counts += report.counts
    lines = [["rows", "taken", "bad", *kinds, "file"]]
    for report in [*reports, total]:
        numbers = [report.rows, report.taken, report.bad, *(report.counts[kind] for kind in kinds)]
        lines.append(
            [*(f"{number:,}" for number in numbers), f"{one_line(report.file)}  {report.sampling_strategy}".strip()]
        )
    return text_table(lines, right=[*[True] * (len(lines[0]) - 1), False])
