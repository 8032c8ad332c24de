"""A mixture file: which data sets, and how much of each."""

import json
import math
import random
import re
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import yaml

from llava.data.schema import Sample, parse_sample
from llava.errors import DataError

_STRATEGY = re.compile(r"(first|end|random):(\d+(?:\.\d+)?)(%?)")


@dataclass(frozen=True)
class MixtureRow:
    """What one data file gives: its rows, the strategy, and how many rows were taken."""

    json_path: str
    sampling_strategy: str
    rows: int
    taken: int


@dataclass(frozen=True)
class Mixture:
    """The samples of all data files, in order, and the table of where they come from."""

    samples: list[Sample]
    table: list[MixtureRow]

    def __str__(self) -> str:
        lines = [
            f"{row.taken:>9,} of {row.rows:>9,}  {row.sampling_strategy:<12} {row.json_path}" for row in self.table
        ]
        return "\n".join([*lines, f"{len(self.samples):>9,} samples"])


def mixture_entries(path: str | Path) -> list[tuple[Path, str]]:
    """(data file, sampling strategy) of each entry; relative paths count from the mixture file, braces are expanded.

    Raises DataError for a file that is missing, empty or not `datasets: [{json_path, sampling_strategy}]`.
    """
    path = Path(path)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"mixture {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise DataError(f"mixture {path} is not UTF-8 text") from None
    except yaml.YAMLError as error:
        raise DataError(f"mixture {path} is not YAML: {' '.join(str(error).split())}") from None
    datasets = content.get("datasets") if isinstance(content, dict) else None
    if not isinstance(datasets, list) or not datasets:
        raise DataError(f"mixture {path} has no entries; it needs 'datasets: [{{json_path, sampling_strategy}}]'")
    entries = []
    for number, entry in enumerate(datasets, start=1):
        unknown = set(entry) - {"json_path", "sampling_strategy"} if isinstance(entry, dict) else {"not an object"}
        if unknown or not isinstance(entry.get("json_path"), str):
            raise DataError(f"mixture {path} entry {number} must have json_path and sampling_strategy, found {entry!r}")
        strategy = str(entry.get("sampling_strategy", "all"))
        _parse_strategy(strategy, f"mixture {path} entry {number}")
        entries += [(path.parent / file, strategy) for file in expand_braces(entry["json_path"])]
    return entries


def load_mixture(path: str | Path, seed: int) -> Mixture:
    """Reads every data file of the mixture. `random` draws from (seed, file name) and so is the same on every rank."""
    samples, table = [], []
    for file, strategy in mixture_entries(path):
        records = read_records(file)
        taken = _choose(len(records), strategy, f"{seed}/{file.name}", str(path))
        samples += [parse_sample(records[row], f"{file} row {row + 1}") for row in taken]
        table.append(MixtureRow(str(file), strategy, len(records), len(taken)))
    if not samples:
        raise DataError(f"mixture {path} is empty: its {len(table)} data files give 0 samples")
    return Mixture(samples, table)


def read_records(file: Path) -> list:
    """The rows of a JSON list or a JSONL file; DataError names the file and line."""
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"data file {file} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise DataError(f"data file {file} is not UTF-8 text") from None
    lines = enumerate(text.split("\n"), start=1) if file.suffix == ".jsonl" else [(1, text)]
    records = []
    for number, line in lines:
        try:
            records += [json.loads(line)] if line.strip() else []
        except json.JSONDecodeError as error:
            line_number = number + error.lineno - 1
            raise DataError(f"data file {file} line {line_number} is not JSON: {error.msg}") from None
    if file.suffix != ".jsonl":
        records = records[0] if records else []
    if not isinstance(records, list):
        raise DataError(f"data file {file} must hold a list of records, found {type(records).__name__}")
    return records


def expand_braces(pattern: str) -> list[str]:
    """`a{b,c}.json` to [`ab.json`, `ac.json`]; a path without braces to itself."""
    pieces = re.split(r"\{([^{}]*)\}", pattern)
    choices = [piece.split(",") if index % 2 else [piece] for index, piece in enumerate(pieces)]
    return ["".join(part.strip() for part in parts) for parts in product(*choices)]


def _parse_strategy(strategy: str, where: str) -> tuple[str, float, bool]:
    if strategy == "all":
        return "all", 0, False
    matched = _STRATEGY.fullmatch(strategy)
    if matched is None or (not matched[3] and "." in matched[2]):
        raise DataError(
            f"{where}: unknown sampling_strategy {strategy!r}; use all, first:N, end:N or random:N (N or N%)"
        )
    return matched[1], float(matched[2]), bool(matched[3])


def _choose(rows: int, strategy: str, seed: str, where: str) -> list[int]:
    """The rows that a strategy takes; a percentage is rounded up. end:0 takes none."""
    kind, amount, percent = _parse_strategy(strategy, where)
    if kind == "all":
        return list(range(rows))
    count = math.ceil(rows * amount / 100) if percent else int(amount)
    if count > rows:
        raise DataError(f"{where}: sampling_strategy {strategy!r} asks for {count} rows, but there are {rows}")
    if kind == "first":
        return list(range(count))
    if kind == "end":
        return list(range(rows - count, rows))
    return sorted(random.Random(seed).sample(range(rows), count))
