"""Data files of pairs as tables whose columns are memory-mapped: ViLT's arrow files as they are, parquet, and JSON.

An arrow file is mapped. Parquet and JSON cannot be mapped: they are written once as an arrow file, beside the data or
in the user's cache folder (see data/indexing.py), under a name that holds the data file's size and time of change;
small ones are read into memory. So a start reads no row in Python, and all processes of a node share what is mapped.
"""

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from llava.data.index import FileKey
from llava.data.indexing import CACHE, SMALL, homes, unfinished_in
from llava.data.json_rows import SUFFIXES, iter_records
from llava.data.pairs.json_pairs import row_of
from llava.errors import DataError, LlavaError
from llava.files import sync
from llava.printable import one_line

VERSION = 1  # of what is kept; another one is another file
BLOCK = 2000  # rows of JSON, or of parquet, that are written at a time
READ = (".arrow", ".parquet", *SUFFIXES)
# Names that other writers give to the columns.
ALIASES = {
    "captions": "caption",
    "text": "caption",
    "question": "questions",
    "answer": "answers",
    "sentence": "sentences",
    "label": "labels",
}
# Of a JSON file: what it may hold, all of it empty where a record has none.
JSON_SCHEMA = pa.schema(
    {
        "image": pa.string(),
        "image_0": pa.string(),
        "image_1": pa.string(),
        "caption": pa.list_(pa.string()),
        "questions": pa.list_(pa.string()),
        "answers": pa.list_(pa.list_(pa.string())),
        "answer_scores": pa.list_(pa.list_(pa.float64())),
        "question_id": pa.list_(pa.string()),
        "sentences": pa.list_(pa.string()),
        "labels": pa.list_(pa.string()),
        "id": pa.string(),
        "fault": pa.string(),
    }
)


@dataclass(frozen=True, eq=False)
class PairTable:
    """The rows of one data file. A worker process that is sent it opens the file itself."""

    file: Path
    table: pa.Table

    def __reduce__(self) -> tuple[Callable, tuple]:
        return open_table, (self.file,)

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def column(self, name: str) -> pa.ChunkedArray | None:
        """A column; None where the file has none of the name, or only nulls in it."""
        if name not in self.table.column_names:
            return None
        column = self.table.column(name)
        return None if len(column) and column.null_count == len(column) else column


def open_table(file: Path) -> PairTable:
    """Opens `.arrow`, `.parquet`, `.json` or `.jsonl`.

    Raises:
        DataError: The file is missing, damaged or of another kind, named in one line.
        LlavaError: Nothing can be kept of a large parquet or JSON file.
    """
    try:
        table = _opened(file)
    except OSError as error:
        raise DataError(f"data file {file} cannot be read: {error.strerror or one_line(str(error))}") from None
    except pa.ArrowException as error:
        raise DataError(
            f"data file {file} is no {file.suffix.removeprefix('.')} file: {one_line(str(error))}"
        ) from None
    names = [name if ALIASES.get(name) in (None, *table.column_names) else ALIASES[name] for name in table.column_names]
    return PairTable(file, table.rename_columns(names))


def _opened(file: Path) -> pa.Table:
    kind = file.suffix.lower()
    if kind == ".arrow":
        return _mapped(file)
    if kind not in READ:
        raise DataError(f"data file {file}: pairs are read from {', '.join(READ)}")
    key = FileKey.of(file)
    if key.size < SMALL:
        blocks = list(_blocks(file))
        return pa.Table.from_batches(blocks, blocks[0].schema if blocks else JSON_SCHEMA)
    name = f"pairs-{VERSION}-{key.size}-{key.modified}.arrow"
    kept = next((home / name for home in homes(file) if (home / name).is_file()), None)
    return _mapped(_keep(file, name, key) if kept is None else kept)


def _mapped(file: Path) -> pa.Table:
    with pa.memory_map(str(file)) as source:
        return pa.ipc.open_file(source).read_all()


def _keep(file: Path, name: str, key: FileKey) -> Path:
    """Writes the file as arrow, in the first place where that can be, and removes what was kept of it as it was."""
    reasons = []
    for home in homes(file):
        unfinished = None
        try:
            unfinished = unfinished_in(home)
            _write(unfinished, file)
            if FileKey.of(file) != key:
                raise DataError(f"data file {file} changed while it was read")
            sync(unfinished)
            unfinished.rename(home / name)
            for other in home.glob("pairs-*.arrow"):
                if other.name != name:
                    with suppress(OSError):
                        other.unlink()
            return home / name
        except OSError as error:
            reasons.append(f"{home}: {error.strerror or one_line(str(error))}")
        finally:
            if unfinished is not None:
                with suppress(OSError):
                    unfinished.unlink()
    raise LlavaError(f"{file} cannot be kept as arrow ({'; '.join(reasons)}); name a folder in {CACHE}")


def _write(path: Path, file: Path) -> None:
    blocks = _blocks(file)
    first = next(blocks, None)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, first.schema if first else JSON_SCHEMA) as writer:
        if first is not None:
            writer.write_batch(first)
        for block in blocks:
            writer.write_batch(block)


def _blocks(file: Path) -> Iterator[pa.RecordBatch]:
    if file.suffix.lower() == ".parquet":
        with parquet.ParquetFile(file) as source:
            yield from source.iter_batches(BLOCK)
        return
    records = iter_records(file)
    while rows := [row_of(record) for record in islice(records, BLOCK)]:
        yield pa.RecordBatch.from_pylist(rows, JSON_SCHEMA)


def value(column: pa.ChunkedArray | None, row: int) -> Any:
    """What a column holds in a row, as Python's; None where there is no column."""
    return None if column is None else column[row].as_py()
