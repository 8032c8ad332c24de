"""The work on one file of a set: what it depends on, where it is noted, and the count of what became of its rows."""

import hashlib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from llava.data.index import FileKey
from llava.errors import DataError
from llava.prepare_data.rules import Rule, rules_of

NOTES = ".prepare"  # folder of what is finished
IMAGES = "images"  # folder of the images that a JSON file names
RECORDS = ".records"  # the ending of a part's
LONGEST_NAME = 255  # bytes of a file's name, without its folders
LOOSE = ("", IMAGES, "data_images")  # folders beside a file of records in which its images may lie unpacked


@dataclass
class Tally:
    """What happened to the rows of a set. changed, dropped: by rule. first: by rule, the first dropped row and why."""

    rows: int = 0
    written: int = 0
    changed: Counter = field(default_factory=Counter)
    dropped: Counter = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, content: dict) -> "Tally":
        """The tally that to_dict gave."""
        counters = Counter(content["changed"]), Counter(content["dropped"])
        return cls(content["rows"], content["written"], *counters, content["first"])

    def to_dict(self) -> dict:
        """The tally as JSON values."""
        return vars(self)

    def drop(self, rule: str, reason: str) -> None:
        """Counts a dropped row. reason: which, and why it."""
        self.dropped[rule] += 1
        self.first.setdefault(rule, reason)

    def add(self, other: "Tally") -> None:
        """Adds another part's tally."""
        self.rows, self.written = self.rows + other.rows, self.written + other.written
        self.changed, self.dropped = self.changed + other.changed, self.dropped + other.dropped
        self.first = other.first | self.first


class Part(NamedTuple):
    """The work on one file of one set, and where its records are noted until the set is complete.

    refused: {name: why} of the files that it names and that an archive holds, but that were not unpacked.
    """

    source: Path
    out: Path
    repository: str
    name: str
    file: Path
    drop_missing: bool
    decode: bool = True
    refused: dict[str, str] = {}

    @property
    def rules(self) -> list[Rule]:
        """The rules that concern the data set."""
        return rules_of(self.repository, self.name)

    @property
    def place(self) -> str:
        """The file's name and folders in one name, without those that the set's name tells."""
        parts = self.file.relative_to(self.source).with_suffix("").parts
        return short_name("+".join(parts[1:] or parts), RECORDS).removesuffix(RECORDS)

    @property
    def records(self) -> Path:
        """Where the records of this part are written."""
        return self.out / self.repository / NOTES / self.name / f"{self.place}{RECORDS}"

    @property
    def key(self) -> dict:
        """What the records depend on, as JSON values."""
        rules = [rule.name for rule in self.rules]
        return file_key(self.file) | {"rules": rules, "drop_missing": self.drop_missing, "decode": self.decode}


@dataclass
class Missing:
    """Files that rows name and that are not there."""

    first: str = ""

    def add(self, name: str, row: int) -> None:
        """Keeps the first of them, with the row, counted from 1, that names it."""
        self.first = self.first or f"{name}; row {row} names it"

    def check(self, part: Part, tally: Tally) -> None:
        """Raises DataError where there is any, unless their rows are dropped."""
        if self.first and not part.drop_missing:
            raise DataError(
                f"{part.file}: the files of {tally.dropped['missing_file']:,} of {tally.rows:,} rows are in none of "
                f"the snapshot's archives and folders, first {self.first}; download the rest, or drop these rows with "
                "--drop_missing"
            )


def short_name(name: str, suffix: str) -> str:
    """A file's name from a longer one; of what is too long for a file's name the end becomes a digest."""
    content = name.encode()
    if len(content) + len(suffix) <= LONGEST_NAME:
        return name + suffix
    return content[:100].decode(errors="ignore") + "-" + hashlib.sha256(content).hexdigest()[:16] + suffix


def file_key(file: Path) -> dict:
    """What tells whether a file is still the one that it was."""
    return {"file": file.name, **FileKey.of(file)._asdict()}
