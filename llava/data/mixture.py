"""A mixture file: which data sets, and how much of each."""

import errno
import math
import os
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from llava.data.indexing import index_files
from llava.data.json_rows import SUFFIXES, iter_records
from llava.data.record_store import Part, RecordStore
from llava.data.workers import Workers
from llava.errors import DataError
from llava.printable import brief, one_line
from llava.text_files import parse_yaml, read_text

KEYS = ("json_path", "sampling_strategy", "expected_rows", "hub")
HUB_KEYS = ("repo", "config")
ROUNDED = 0.02  # how far a count may lie from an expected one that is only "about" right
_STRATEGY = re.compile(r"(first|end|random):(\d{1,12}(?:\.\d{1,12})?)(%?)")
_EXPECTED = re.compile(r"(about )?(\d{1,12})")


class ExpectedRows(NamedTuple):
    """How many rows a data file should have. rounded: the number is known to within 2% only ("about N")."""

    rows: int
    rounded: bool

    def __str__(self) -> str:
        return f"about {self.rows:,}" if self.rounded else f"{self.rows:,}"

    def fits(self, rows: int) -> bool:
        """Whether a file of so many rows is as expected."""
        return abs(rows - self.rows) <= (ROUNDED * self.rows if self.rounded else 0)


class HubSource(NamedTuple):
    """Where a data file comes from: a data set repository on the hub and, where it holds several sets, the folder."""

    repo: str
    config: str | None


class MixtureEntry(NamedTuple):
    """One data file of a mixture: how much of it is taken, how much it should hold and where it comes from."""

    file: Path
    sampling_strategy: str
    expected_rows: ExpectedRows | None = None
    hub: HubSource | None = None


@dataclass(frozen=True)
class MixtureRow:
    """What one data file gives: its rows, the strategy, and how many rows were taken."""

    json_path: str
    sampling_strategy: str
    rows: int
    taken: int


@dataclass(frozen=True)
class Mixture:
    """The samples of all data files, in order, the table of where they come from, and which files came again."""

    samples: RecordStore
    table: list[MixtureRow]
    repeated: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [
            f"{row.taken:>9,} of {row.rows:>9,}  {row.sampling_strategy:<12} {row.json_path}" for row in self.table
        ]
        return "\n".join([*lines, *self.repeated, f"{len(self.samples):>9,} samples"])


def mixture_entries(path: str | Path) -> list[MixtureEntry]:
    """The mixture's data files; relative paths count from its root, braces and a leading ~ are expanded.

    The root is the mixture file's folder, or the folder that the mixture names as `root`, counted from there. A data
    file in place of a mixture is a mixture of itself alone, whole.
    Raises DataError for a file that is missing or empty, a root that is no path, and an entry with anything but KEYS.
    """
    path = Path(path)
    if path.suffix.lower() in SUFFIXES:
        return [MixtureEntry(_possible(path, "data file"), "all")]
    content = mixture_content(path)
    datasets = content.get("datasets") if isinstance(content, dict) else None
    if not isinstance(datasets, list) or not datasets:
        raise DataError(f"mixture {path} has no entries; it needs 'datasets: [{{json_path, sampling_strategy}}]'")
    folder = mixture_root(content, path)
    return [
        entry
        for number, fields in enumerate(datasets, start=1)
        for entry in _parse_entry(fields, folder, f"mixture {path} entry {number}")
    ]


def mixture_content(path: Path) -> Any:
    """What the YAML file holds. Raises DataError for a file that cannot be read as such."""
    try:
        return parse_yaml(read_text(path))
    except OSError as error:
        raise DataError(f"mixture {path} cannot be read: {error.strerror}") from None
    except UnicodeError:
        raise DataError(f"mixture {path} is not UTF-8 text") from None
    except yaml.YAMLError as error:
        raise DataError(f"mixture {path} is not YAML: {error}") from None


def mixture_root(content: dict, path: Path) -> Path:
    """The folder from which the paths of a mixture with this content count. Raises DataError for what is no path."""
    root = content.get("root", "")
    if not isinstance(root, str):
        raise DataError(f"mixture {path}: root must be a folder, found {brief(root)}")
    return _possible(path.parent / os.path.expanduser(root), f"mixture {path}: root")


def _parse_entry(fields: Any, folder: Path, where: str) -> list[MixtureEntry]:
    unknown = set(fields) - set(KEYS) if isinstance(fields, dict) else {"not an object"}
    if unknown or not isinstance(fields.get("json_path"), str):
        raise DataError(
            f"{where} must have json_path and sampling_strategy, and may have expected_rows and hub; "
            f"found {brief(fields)}"
        )
    strategy = str(fields.get("sampling_strategy", "all"))
    check_strategy(strategy, where)
    expected = parse_expected(fields.get("expected_rows"), where)
    hub = _parse_hub(fields.get("hub"), where)
    files = files_of(fields["json_path"], folder, "json_path", where)
    if expected is not None and len(files) > 1:
        raise DataError(f"{where}: expected_rows is for one file, but json_path names {len(files)}")
    return [MixtureEntry(file, strategy, expected, hub) for file in files]


def files_of(pattern: str, folder: Path, key: str, where: str) -> list[Path]:
    """The files that an entry names by `key`. Other patterns than braces would take what happens to lie there."""
    files = [os.path.expanduser(file) for file in expand_braces(pattern)]
    for file in files:
        if re.search(r"[*?{}]", file) and not os.path.exists(folder / file):
            raise DataError(
                f"{where}: {key} {pattern!r} is a pattern, of which {{a,b}} alone is expanded, and not within "
                "braces; name the files"
            )
    return [_possible(folder / file, where) for file in files]


def _possible(file: Path, where: str) -> Path:
    """The file, there or not; DataError for a name that no file can have, at which every question about it fails."""
    try:
        os.lstat(file)
    except (ValueError, OSError) as error:  # ValueError: a NUL or half a character
        if isinstance(error, ValueError) or error.errno == errno.ENAMETOOLONG:
            reason = one_line(getattr(error, "strerror", None) or str(error))
            raise DataError(f"{where}: {brief(str(file))} cannot be read: no file has such a name, {reason}") from None
    return file


def missing_files(path: str | Path) -> list[Path]:
    """The data files that the mixture names and that do not exist. Raises DataError as mixture_entries does."""
    return [entry.file for entry in mixture_entries(path) if not entry.file.is_file()]


def repeated_files(entries: Sequence[MixtureEntry]) -> list[str]:
    """A line for each file that several entries name, whose rows may be taken several times."""
    numbers: dict[str, list[int]] = {}
    for number, entry in enumerate(entries, start=1):
        numbers.setdefault(os.path.realpath(entry.file), []).append(number)
    return [
        f"{entries[places[0] - 1].file} is in the mixture {len(places)} times; each takes its rows again"
        for places in numbers.values()
        if len(places) > 1
    ]


def parse_expected(value: Any, where: str) -> ExpectedRows | None:
    """What expected_rows says; None where it says nothing. Raises DataError for anything but a number or "about N"."""
    if value is None:
        return None
    matched = _EXPECTED.fullmatch(str(value))
    if matched is None or isinstance(value, bool):
        raise DataError(f"{where}: expected_rows must be a number or 'about N', found {brief(value)}")
    return ExpectedRows(int(matched[2]), bool(matched[1]))


def _parse_hub(value: Any, where: str) -> HubSource | None:
    if value is None:
        return None
    right_keys = isinstance(value, dict) and not set(value) - set(HUB_KEYS)
    if not right_keys or not all(isinstance(text, str) for text in value.values()) or "/" not in value.get("repo", ""):
        raise DataError(
            f"{where}: hub must be {{repo: OWNER/NAME, config: FOLDER}}, config optional; found {brief(value)}"
        )
    return HubSource(value["repo"], value.get("config"))


def load_mixture(path: str | Path, seed: int) -> Mixture:
    """What the mixture takes of every data file, by its index, see index_files.

    `random` draws from (seed, file name) and so is the same on every rank. A record that cannot be used is a sample
    that says why in `fault`, see sample_of.
    """
    parts, table = [], []
    entries = mixture_entries(path)
    with Workers() as workers:
        indices = index_files([entry.file for entry in entries], workers)
    for (file, strategy, *_), index in zip(entries, indices):
        taken = choose_rows(len(index), strategy, f"{seed}/{file.name}", str(path))
        parts.append(Part(index, taken))
        table.append(MixtureRow(str(file), strategy, len(index), len(taken)))
    samples = RecordStore(parts)
    if not samples:
        raise DataError(f"mixture {path} is empty: its {len(table)} data files give 0 samples")
    return Mixture(samples, table, repeated_files(entries))


def read_records(file: Path) -> list:
    """All rows of a JSON list or a JSONL file; DataError names the file and line."""
    return list(iter_records(file))


def expand_braces(pattern: str) -> list[str]:
    """`a{b,c}.json` to [`ab.json`, `ac.json`]; a path without braces to itself."""
    pieces = re.split(r"\{([^{}]*)\}", pattern)
    choices = [piece.split(",") if index % 2 else [piece] for index, piece in enumerate(pieces)]
    return ["".join(part.strip() for part in parts) for parts in product(*choices)]


def check_strategy(strategy: str, where: str) -> None:
    """Raises DataError for a sampling_strategy that is none."""
    _parse_strategy(strategy, where)


def _parse_strategy(strategy: str, where: str) -> tuple[str, Fraction, bool]:
    """(kind, amount, whether it is a percentage), the amount as it is written: 1.1% of 3,000 rows are 33."""
    if strategy == "all":
        return "all", Fraction(0), False
    matched = _STRATEGY.fullmatch(strategy)
    if matched is None or (not matched[3] and "." in matched[2]):
        raise DataError(
            f"{where}: unknown sampling_strategy {strategy!r}; use all, first:N, end:N or random:N (N or N%)"
        )
    amount = Fraction(matched[2])
    if matched[3] and amount > 100:
        raise DataError(f"{where}: sampling_strategy {strategy!r} asks for more than 100% of the rows")
    return matched[1], amount, bool(matched[3])


def count_taken(rows: int, strategy: str, where: str) -> int:
    """How many of so many rows a strategy takes; a percentage is rounded up. DataError when there are fewer."""
    kind, amount, percent = _parse_strategy(strategy, where)
    if kind == "all":
        return rows
    count = math.ceil(rows * amount / 100) if percent else int(amount)
    if count > rows:
        raise DataError(f"{where}: sampling_strategy {strategy!r} asks for {count} rows, but there are {rows}")
    return count


def choose_rows(rows: int, strategy: str, seed: str, where: str) -> Sequence[int]:
    """The rows that a strategy takes, ascending. end:0 takes none."""
    kind, count = strategy.partition(":")[0], count_taken(rows, strategy, where)
    if kind in ("all", "first"):
        return range(count)
    if kind == "end":
        return range(rows - count, rows)
    return sorted(random.Random(seed).sample(range(rows), count))
