"""An index of a data file: where each record stands, and the numbers that a start of training needs of it, as arrays.

It is made once, by processes, and kept: beside the data in INDEX_FOLDER, or, where nothing can be written there, in the
user's cache folder (LLAVA_INDEX_CACHE, else XDG_CACHE_HOME or ~/.cache). A folder of it is named after the data file's
size and time of change, is written under another name and renamed when it is whole: a process may be killed anywhere,
and a file that has changed is indexed anew. Its arrays are memory-mapped, so that all processes of a node share them.
Small files have an index in memory alone: it is made faster than it is found.
"""

import errno
import hashlib
import io
import json
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

import numpy as np
from tqdm import tqdm

from llava.data.conversation import TEMPLATES
from llava.data.json_rows import decode, iter_records, record_spans
from llava.data.notes import has_places_and_answer, is_regular, notes_of
from llava.data.schema import Sample, Turn, sample_of
from llava.data.workers import Workers
from llava.errors import DataError, LlavaError
from llava.files import patiently, sync_files
from llava.printable import visible
from llava.text_files import UTF_8, encoding_of, open_text, read_text

COPY = "records"  # of a data file in another encoding than UTF-8
VERSION = 1  # of what is kept; another one is another index
INDEX_FOLDER = ".llava-index"
CACHE = "LLAVA_INDEX_CACHE"
SMALL = 1 << 18  # bytes of a data file
BLOCK = 2000  # rows that a process is handed at a time
LEFTOVER = 86_400  # seconds after which another host's unfinished index belongs to nobody
UNFINISHED = ".unfinished"
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
            return _map, (self.file, self.key, self.folder)
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


def index_file(file: Path, workers: Workers) -> RecordIndex:
    """As index_files, of one data file."""
    return index_files([file], workers)[0]


def index_files(files: Sequence[Path], workers: Workers) -> list[RecordIndex]:
    """The indices of data files; those that do not exist of the files as they are get made, and kept.

    Raises DataError that names the file and the line of a fault, as iter_records does; LlavaError where nothing can be
    kept.
    """
    try:
        keys = {file: FileKey.of(file) for file in files}
        existing = {file: _find(file, key) for file, key in keys.items()}
        missing = {file: keys[file] for file, index in existing.items() if index is None}
        indices = {file: index for file, index in existing.items() if index is not None} | _make(missing, workers)
        return [indices[file] for file in files]
    except (DataError, OSError, ValueError, RecursionError):
        for file in dict.fromkeys(files):  # the first fault of the first file that has one, with its line
            for _ in iter_records(file):
                pass
        raise


def homes(file: Path) -> list[Path]:
    """The folders in which indices of a data file may stand: beside it, and in the user's cache."""
    real = Path(os.path.realpath(file))
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "llava-ov-manager" / "index"
    name = f"{real.name[:100]}-{hashlib.sha256(os.fsencode(real)).hexdigest()[:16]}"
    return [real.parent / INDEX_FOLDER / real.name, Path(os.environ.get(CACHE) or cache) / name]


def _name(key: FileKey) -> str:
    return f"{VERSION}-{key.size}-{key.modified}"


def _find(file: Path, key: FileKey) -> RecordIndex | None:
    if key.size < SMALL:
        content = file.read_bytes()
        if encoding_of(content[:4]) != UTF_8:
            content = read_text(file).encode()
        spans = _spans(io.BufferedReader(io.BytesIO(content)), file)
        return RecordIndex(file, key, facts_of(content, spans), records=content)
    folders = [home / _name(key) for home in homes(file)]
    return next((_map(file, key, folder) for folder in folders if folder.is_dir()), None)


@lru_cache(maxsize=1024)
def _map(file: Path, key: FileKey, folder: Path) -> RecordIndex:
    facts = Facts(*(map_array(folder / name, kind) for name, kind in zip(Facts._fields, KINDS)))
    return RecordIndex(file, key, facts, folder)


def map_array(file: Path, kind: np.dtype) -> np.ndarray:
    """What a file holds, mapped to read it; an empty file cannot be mapped. Raises OSError."""
    return np.memmap(file, kind, mode="r").view(np.ndarray) if file.stat().st_size else np.zeros(0, kind)


def _make(files: dict[Path, FileKey], workers: Workers) -> dict[Path, RecordIndex]:
    """Makes the indices. The files share the processes: each is parted by one, its blocks are read by all."""
    if not files:
        return {}
    with ExitStack() as stack:
        folders = {file: stack.enter_context(_unfinished(file)) for file in files}
        sources = {file: _source(file, folder) for file, folder in folders.items()}
        parted = workers.map(_spans_of, ((source, file) for file, source in sources.items()), alone=len(files) == 1)
        spans = dict(zip(files, parted))
        blocks = {file: range(0, len(file_spans), BLOCK) for file, file_spans in spans.items()}
        tasks = (
            (sources[file], spans[file][begin : begin + BLOCK]) for file, begins in blocks.items() for begin in begins
        )
        rows = sum(map(len, spans.values()))
        facts = workers.map(_facts_in_file, tasks, alone=rows <= BLOCK)
        with tqdm(total=rows, unit="row", desc="indexed", disable=None) as bar:
            for file, begins in blocks.items():
                _write(folders[file], islice(facts, len(begins)), bar)
        for file, key in files.items():
            if FileKey.of(file) != key:
                raise DataError(f"data file {file} changed while it was read")
        return {file: _map(file, key, _place(folders[file], key)) for file, key in files.items()}


@contextmanager
def _unfinished(file: Path) -> Iterator[Path]:
    """A folder to make an index in, in the first place where that can be; it is gone in the end."""
    reasons = []
    for home in homes(file):
        try:
            folder = unfinished_in(home)
            folder.mkdir()
            break
        except OSError as error:
            reasons.append(f"{home}: {error.strerror}")
    else:
        raise LlavaError(f"the index of {file} cannot be written ({'; '.join(reasons)}); name a folder in {CACHE}")
    try:
        yield folder
    except OSError as error:
        raise LlavaError(f"the index of {file} cannot be written to {home}: {error.strerror}") from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def unfinished_in(folder: Path) -> Path:
    """A new name in a folder, which is made, for what is renamed when it is whole.

    What killed processes left there is removed: of this host where the process is gone, of others after a day. Raises
    OSError.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for other in folder.glob(f"*{UNFINISHED}"):
        host, process, _ = other.name.removesuffix(UNFINISHED).rsplit(".", 2)
        with suppress(OSError):
            age = time.time() - other.stat().st_mtime
            if not Path(f"/proc/{process}").exists() if host == platform.node() else age > LEFTOVER:
                if other.is_dir():
                    shutil.rmtree(other)
                else:
                    other.unlink()
    return folder / f"{platform.node()}.{os.getpid()}.{uuid4().hex[:8]}{UNFINISHED}"


def _place(unfinished: Path, key: FileKey) -> Path:
    """Puts a whole index in its place, unless another process was first, and removes those of the file as it was."""
    folder = unfinished.parent / _name(key)
    sync_files(unfinished)
    with suppress(FileExistsError):
        try:
            unfinished.rename(folder)
        except OSError as error:
            if error.errno != errno.ENOTEMPTY:
                raise
    for other in folder.parent.iterdir():
        if other != folder and other.suffix != UNFINISHED:
            shutil.rmtree(other, ignore_errors=True)
    return folder


def _source(file: Path, folder: Path) -> Path:
    """Where the records stand in UTF-8: in the file itself, else in a copy."""
    with file.open("rb") as stream:
        if encoding_of(stream.peek(4)) == UTF_8:
            return file
    with open_text(file) as text, (folder / COPY).open("w", encoding="utf-8", newline="") as stream:
        shutil.copyfileobj(text, stream)
    return folder / COPY


def _write(folder: Path, blocks: Iterable[Facts], bar: tqdm) -> None:
    end = 0
    with ExitStack() as stack:
        streams = [stack.enter_context((folder / name).open("wb")) for name in Facts._fields]
        for facts in blocks:
            facts.path_ends["end"] += end
            end += len(facts.paths)
            for stream, array in zip(streams, facts):
                stream.write(array.tobytes())
            bar.update(len(facts.rows))


def _spans_of(source: Path, file: Path) -> np.ndarray:
    with source.open("rb") as stream:
        return _spans(stream, file)


def _spans(stream: io.BufferedReader, file: Path) -> np.ndarray:
    """Where records begin and end (N, 2)."""
    return np.fromiter(chain.from_iterable(record_spans(stream, file)), dtype=np.int64).reshape(-1, 2)


def _facts_in_file(source: Path, spans: np.ndarray) -> Facts:
    first, last = int(spans[0, 0]), int(spans[-1, 1])
    with source.open("rb") as stream:
        stream.seek(first)
        return facts_of(stream.read(last - first), spans, first)


def facts_of(content: bytes, spans: np.ndarray, first: int = 0) -> Facts:
    """What is known of some records.

    spans: where they begin and end (N, 2). content: the data from byte `first` on. Raises ValueError for what is no
    record, which iter_records tells better.
    """
    rows, ids, paths = [], [], []
    for begin, end in spans.tolist():
        text = content[begin - first : end - first].decode()
        record, length = decode(text)
        if length < len(text):
            raise ValueError("extra data behind a record")
        sample = sample_of(record, "")
        ids.append(sample.id.encode())
        paths += [(path.encode(), False) for path in sample.images] + [(path.encode(), True) for path in sample.videos]
        rows.append((begin, end - begin, *_numbers(sample), len(ids[-1]), *_judged(sample)))
    path_ends = np.zeros(len(paths), PATH)
    path_ends["end"] = np.cumsum([len(path) for path, _ in paths])
    path_ends["is_video"] = [is_video for _, is_video in paths]
    return Facts(np.array(rows, ROW), _joined(ids), _joined(path for path, _ in paths), path_ends)


def _joined(texts: Iterable[bytes]) -> np.ndarray:
    return np.frombuffer(b"".join(texts), np.uint8)


def _numbers(sample: Sample) -> tuple[int, ...]:
    texts, answers = text_bytes(sample.turns)
    return texts, answers, len(sample.turns), len(sample.images), len(sample.videos)


def text_bytes(turns: Sequence[Turn]) -> tuple[int, int]:
    """Bytes of all turns' texts, and of the answers' among them."""
    sizes = [len(turn.text) if turn.text.isascii() else len(turn.text.encode()) for turn in turns]
    return sum(sizes), sum(size for size, turn in zip(sizes, turns) if turn.role == "gpt")


def _judged(sample: Sample) -> tuple[bool, tuple[int, ...]]:
    """Whether the record alone can be used, and each template's verdict."""
    if sample.fault is not None:
        return False, (FAULTY,) * len(TEMPLATES)
    if is_regular(sample):
        shown = len(sample.turns) == 2 and bool(sample.images or sample.videos)
        return True, tuple(CLEAN if shown or template != "plain" else FAULTY for template in TEMPLATES)
    return has_places_and_answer(sample), tuple(_verdict(sample, template) for template in TEMPLATES)


def _verdict(sample: Sample, template: str) -> int:
    try:
        return ODD if notes_of(sample, template) else CLEAN
    except DataError:
        return FAULTY
