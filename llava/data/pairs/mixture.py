"""A mixture of pairs: which data files each split takes, and where its answers' vocabulary stands.

    kind: questions                     # see llava/data/pairs/pair.py
    root: ../data                       # from this file
    answers: vqav2_answers.json         # of questions: the vocabulary; without it the files' own, see vocabulary.py
    splits:
      train:
        - {name: vqav2, files: vqav2_train_fix.arrow, expected_rows: about 82783}
      val: ...

name: of the data set, whose images are each other's false images; files of one name are one data set. files: braces are
expanded. sampling_strategy, expected_rows: as in other mixtures (docs/data.md), of rows, of all the entry's files.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llava.data.mixture import (
    ExpectedRows,
    check_strategy,
    choose_rows,
    files_of,
    mixture_content,
    mixture_root,
    parse_expected,
)
from llava.data.pairs.pair import KINDS, PairKind
from llava.data.pairs.store import PairFile, PairStore
from llava.data.pairs.tables import READ, PairTable, open_table
from llava.errors import DataError
from llava.printable import brief

KEYS = ("kind", "root", "answers", "splits")
ENTRY_KEYS = ("name", "files", "sampling_strategy", "expected_rows")
ALL = "all"  # the split of a data file in place of a mixture


@dataclass(frozen=True)
class PairEntry:
    """A data set of a split. expected_rows: of all its files together."""

    name: str
    files: tuple[Path, ...]
    sampling_strategy: str = "all"
    expected_rows: ExpectedRows | None = None


@dataclass(frozen=True)
class PairMixture:
    """What a mixture file says. root: where paths count from, of images too. answers: the vocabulary's file."""

    file: Path
    kind: PairKind
    splits: dict[str, tuple[PairEntry, ...]]
    root: Path
    answers: Path | None = None

    def entries(self, split: str) -> tuple[PairEntry, ...]:
        """The data sets of a split. Raises DataError that names the splits for one that does not exist."""
        if split not in self.splits:
            raise DataError(f"mixture {self.file} has no split {split!r}; it has {', '.join(self.splits)}")
        return self.splits[split]


class PairRow(NamedTuple):
    """What a data set gives: its rows, how many are taken, and the pairs that these make."""

    name: str
    split: str
    sampling_strategy: str
    rows: int
    taken: int
    pairs: int


@dataclass(frozen=True)
class LoadedPairs:
    """The pairs of a split, and the table of where they come from."""

    store: PairStore
    table: list[PairRow]

    def __str__(self) -> str:
        lines = [
            f"{row.pairs:>11,} pairs of {row.taken:>9,} rows of {row.rows:>9,}  {row.sampling_strategy:<12} "
            f"{row.name}, {row.split}"
            for row in self.table
        ]
        return "\n".join([*lines, f"{len(self.store):>11,} pairs"])


def read_pair_mixture(path: str | Path, kind: str | None = None) -> PairMixture:
    """Reads a mixture of pairs, whose data files need not be there yet.

    Args:
        path: The mixture, or a data file, which is a mixture of itself with the one split `all`.
        kind: What the reader needs; None takes what the mixture has.

    Raises:
        DataError: The mixture has other keys or values than it may have, or holds another kind than is needed.
    """
    path = Path(path)
    if path.suffix.lower() in READ:
        held = KINDS[kind] if kind else _kind_of(open_table(path))
        return PairMixture(path, held, {ALL: (PairEntry(path.stem, (path,)),)}, path.parent)
    content = mixture_content(path)
    if not isinstance(content, dict) or set(content) - set(KEYS) or not isinstance(content.get("splits"), dict):
        present = ", ".join(map(str, content)) if isinstance(content, dict) else brief(content)
        raise DataError(
            f"mixture {path} of pairs must have kind and splits, and may have root and answers; found {present}"
        )
    held_kind = content.get("kind")
    if held_kind not in KINDS:
        raise DataError(f"mixture {path}: kind must be one of {', '.join(KINDS)}, found {brief(held_kind)}")
    if kind is not None and held_kind != kind:
        raise DataError(f"mixture {path} holds {held_kind}, but {kind} are needed")
    folder = mixture_root(content, path)
    splits = {
        str(split): _parse_split(entries, folder, f"mixture {path} split {split}")
        for split, entries in content["splits"].items()
    }
    answers = content.get("answers")
    if answers is not None and not isinstance(answers, str):
        raise DataError(f"mixture {path}: answers must be a file, found {brief(answers)}")
    return PairMixture(path, KINDS[held_kind], splits, folder, None if answers is None else folder / answers)


def _kind_of(opened: PairTable) -> PairKind:
    """The kind of a file by its columns. Raises DataError for none."""
    names = opened.table.column_names
    for kind in KINDS.values():
        if opened.column(kind.texts) is not None and all(opened.column(image) is not None for image in kind.images):
            return kind
    raise DataError(f"data file {opened.file}: its columns are no pairs' ({', '.join(names)})")


def _parse_split(entries: Any, folder: Path, where: str) -> tuple[PairEntry, ...]:
    if not isinstance(entries, list) or not entries:
        raise DataError(f"{where} must be a list of data sets, found {brief(entries)}")
    return tuple(_parse_entry(fields, folder, f"{where} entry {number}") for number, fields in enumerate(entries, 1))


def _parse_entry(fields: Any, folder: Path, where: str) -> PairEntry:
    right_keys = isinstance(fields, dict) and not set(fields) - set(ENTRY_KEYS)
    if not right_keys or not all(isinstance(fields.get(key), str) for key in ("name", "files")):
        raise DataError(
            f"{where} must have name and files, and may have sampling_strategy and expected_rows; found {brief(fields)}"
        )
    strategy = str(fields.get("sampling_strategy", "all"))
    check_strategy(strategy, where)
    files = tuple(files_of(fields["files"], folder, "files", where))
    return PairEntry(fields["name"], files, strategy, parse_expected(fields.get("expected_rows"), where))


def load_pairs(mixture: PairMixture, split: str, seed: int = 0, skip_ids: Collection[str] = ()) -> LoadedPairs:
    """The pairs of a split. A row without texts gives none; what is wrong with a pair is told when it is read.

    Args:
        mixture: see read_pair_mixture.
        split: Its name there.
        seed: Of `random` sampling strategies, which draw from it and the file's name.
        skip_ids: Of rows that are left out: what their column `id` has, and without one FILE:ROW, the file's name and
            the row, counted from 1.

    Raises:
        DataError: There is no such split, a file cannot be read, its columns are another kind's, or no pair is left.
    """
    files, table = [], []
    for entry in mixture.entries(split):
        for path in entry.files:
            opened = open_table(path)
            rows = choose_rows(len(opened), entry.sampling_strategy, f"{seed}/{path.name}", str(mixture.file))
            taken = _without(opened, rows, skip_ids) if skip_ids else rows
            files.append(PairFile(opened, mixture.kind, taken, entry.name))
            table.append(PairRow(str(path), split, entry.sampling_strategy, len(opened), len(taken), len(files[-1])))
    store = PairStore(files)
    if not len(store):
        raise DataError(f"mixture {mixture.file} split {split} is empty: its {len(files)} files give 0 pairs")
    return LoadedPairs(store, table)


def _without(opened: PairTable, rows: Sequence[int], skip_ids: Collection[str]) -> np.ndarray:
    parts = [name.rpartition(":") for name in skip_ids]
    numbers = [int(row) - 1 for file, _, row in parts if file == opened.file.name and row.isdecimal()]
    skipped = np.array(numbers, dtype=np.int64)
    column = opened.column("id")
    if column is not None:
        has_id = np.asarray(column.is_valid())
        is_skipped = pc.is_in(column.cast("string"), value_set=pa.array(sorted(skip_ids)))
        without_id = np.intersect1d(skipped, np.flatnonzero(~has_id))
        skipped = np.union1d(np.flatnonzero(is_skipped.to_numpy()), without_id)
    return np.setdiff1d(np.asarray(rows, dtype=np.int64), skipped)
