"""An index of a data file: where each record stands, and the numbers that a start of training needs of it, as arrays.

indexing.py makes it and keeps it; its arrays are memory-mapped, so that all processes of a node share them.
"""

import json
import mmap
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from llava.data.conversation import TEMPLATES
from llava.data.schema import Sample, sample_of
from llava.errors import DataError
from llava.files import patiently
from llava.printable import visible

COPY = "records"  # of a data file in another encoding than UTF-8
BLOCK = 2000  # rows that a process is handed at a time
SCAN = 1 << 16  # rows of which a pass over all of them knows something at a time
CLEAN, ODD, FAULTY = range(3)  # what a template says of a record: nothing, notes alone, or that it cannot be used

# begin, length: where the record stands, in bytes. text, answers: bytes of all turns' texts, and of the answers'.
# turns, images, videos: how many. id: bytes of its own id, 0 where it has none. usable: no fault of the record, and an
# answer and a place for each image and video. verdicts: what each of TEMPLATES says, CLEAN, ODD or FAULTY.
ROW = np.dtype(
    [
        ("begin", "<i8"),
        ("length", "<u4"),
        ("text", "<u4"),
        ("answers", "<u4"),
        ("turns", "<u4"),
        ("images", "<u4"),
        ("videos", "<u4"),
        ("id", "<u4"),
        ("usable", "?"),
        ("verdicts", "u1", (len(TEMPLATES),)),
    ]
)
PATH = np.dtype([("end", "<i8"), ("is_video", "?")])  # of an image or video: where its path ends among all paths
KINDS = (ROW, np.dtype("u1"), np.dtype("u1"), PATH)  # of Facts


class FileKey(NamedTuple):
    """What tells a file from the one that it was: its size in bytes and its time of change in nanoseconds."""

    size: int
    modified: int

    @classmethod
    def of(cls, file: str | os.PathLike | int) -> "FileKey":
        """file: a path or an open file's number. Raises OSError."""
        status = os.stat(file)
        return cls(status.st_size, status.st_mtime_ns)


class Facts(NamedTuple):
    """What is known of records: rows (ROW), and the bytes of their ids and of their paths, and where these end (PATH).

    paths: of images, then of videos, record by record.
    """

    rows: np.ndarray
    ids: np.ndarray
    paths: np.ndarray
    path_ends: np.ndarray


@dataclass(eq=False)
class RecordIndex:
    """The records of one data file, which are read when they are asked for.

    file: as messages name it. folder: where the index is kept, None in memory. records: the data itself, in UTF-8,
    where it is not read from the file.
    """

    file: Path
    key: FileKey
    facts: Facts
    folder: Path | None = None
    records: bytes | None = None
    _stream: int | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.facts.rows)

    def __reduce__(self) -> tuple[Callable, tuple]:
        """A process that is handed the index maps it itself."""
        if self.folder is not None:
            return map_index, (self.file, self.key, self.folder)
        return RecordIndex, (self.file, self.key, self.facts, None, self.records)

    def sample(self, row: int) -> Sample:
        """The record of a row, counted from 0. Raises DataError when the file is another one by now."""
        begin, length = self.facts.rows[row].item()[:2]
        try:
            return sample_of(json.loads(self._read(begin, length)), f"{self.file} row {row + 1}")
        except RecursionError:  # fewer levels are left here than there were for the index
            raise DataError(f"{self.file} row {row + 1} is nested too deeply") from None

    def ids(self, rows: Sequence[int] | np.ndarray) -> Iterator[bytes]:
        """The samples' ids, one a line, in blocks without their last line's end. No record is read. rows: ascending."""
        lengths = self.facts.rows["id"]
        ends = np.cumsum(lengths, dtype=np.int64)
        for begin in range(0, len(rows), BLOCK):
            block = np.asarray(rows[begin : begin + BLOCK], dtype=np.int64)
            first = int(ends[block[0]]) - int(lengths[block[0]])
            texts = self.facts.ids[first : ends[block[-1]]]
            block_ends, block_lengths = ends[block] - first, lengths[block]
            if len(texts) == block_lengths.sum() and block_lengths.all():
                yield np.insert(texts, block_ends[:-1], ord("\n")).tobytes()
            else:
                yield b"\n".join(
                    texts[end - length : end].tobytes() if length else visible(f"{self.file} row {row + 1}").encode()
                    for row, end, length in zip(block.tolist(), block_ends.tolist(), block_lengths.tolist())
                )
        give_back(self.facts.ids)

    def paths(self, numbers: np.ndarray) -> Iterator[tuple[str, bool]]:
        """The paths of images and videos, counted over the whole file, and whether each is a video's."""
        ends = self.facts.path_ends["end"]
        begins = np.where(numbers > 0, ends[numbers - 1], 0)
        kinds = self.facts.path_ends["is_video"][numbers]
        for begin, end, is_video in zip(begins.tolist(), ends[numbers].tolist(), kinds.tolist()):
            yield self.facts.paths[begin:end].tobytes().decode(), is_video

    def _read(self, begin: int, length: int) -> bytes:
        if self.records is not None:
            return self.records[begin : begin + length]
        try:
            return patiently(self._read_file, begin, length)
        except OSError as error:
            raise DataError(f"data file {self.file} cannot be read: {error.strerror}") from None

    def _read_file(self, begin: int, length: int) -> bytes:
        try:
            if self._stream is None:
                source = self.file
                if self.folder is not None and (self.folder / COPY).exists():
                    source = self.folder / COPY
                self._is_copy = source != self.file
                self._stream = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
            if not self._is_copy and FileKey.of(self._stream) != self.key:
                raise DataError(f"data file {self.file} has changed since it was opened; start again")
            return os.pread(self._stream, length, begin)
        except OSError:
            self._close()  # a stale handle stays stale
            raise

    def _close(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            with suppress(OSError):
                os.close(stream)


@lru_cache(maxsize=1024)
def map_index(file: Path, key: FileKey, folder: Path) -> RecordIndex:
    """The index that is kept in a folder. Raises OSError."""
    facts = Facts(*(map_array(folder / name, kind) for name, kind in zip(Facts._fields, KINDS)))
    return RecordIndex(file, key, facts, folder)


def map_array(file: Path, kind: np.dtype) -> np.ndarray:
    """What a file holds, mapped to read it; an empty one cannot be mapped. Raises OSError; ValueError for a cut one."""
    with file.open("rb") as stream:
        if not os.fstat(stream.fileno()).st_size:
            return np.zeros(0, kind)
        return np.frombuffer(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ), kind)


def give_back(array: np.ndarray) -> None:
    """Lets go of a mapped array's pages after a pass over all of it, where nothing else reads it.

    They stay in the system's cache, and come back when they are asked for; an array in memory stays as it is.
    """
    mapped = array.base.obj if isinstance(array.base, memoryview) else None
    if isinstance(mapped, mmap.mmap):
        mapped.madvise(mmap.MADV_DONTNEED)
