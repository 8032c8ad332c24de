"""Makes the index of a data file and keeps it.

It is made once, by processes, and kept: beside the data in INDEX_FOLDER, or, where nothing can be written there, in the
user's cache folder (LLAVA_INDEX_CACHE, else XDG_CACHE_HOME or ~/.cache). A folder of it is named after the data file's
size and time of change, is written under another name and renamed when it is whole: a process may be killed anywhere,
and a file that has changed is indexed anew. Small files have an index in memory alone: it is made faster than it is
found.
"""

import errno
import hashlib
import io
import json
import os
import platform
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import chain, islice
from pathlib import Path
from uuid import uuid4

import numpy as np
from tqdm import tqdm

from llava.data.conversation import TEMPLATES
from llava.data.index import BLOCK, CLEAN, COPY, FAULTY, ODD, PATH, ROW, Facts, FileKey, RecordIndex, map_index
from llava.data.json_rows import decode, iter_records, record_spans
from llava.data.notes import has_places_and_answer, is_regular, notes_of
from llava.data.schema import Sample, Turn, sample_of
from llava.data.workers import Workers
from llava.errors import DataError, LlavaError
from llava.files import file_hash, sync_files
from llava.text_files import UTF_8, encoding_of, open_text, read_json, read_text

VERSION = 3  # of what is kept; another one is another index
INDEX_FOLDER = ".llava-index"
CACHE = "LLAVA_INDEX_CACHE"
SMALL = 1 << 18  # bytes of a data file
LEFTOVER = 86_400  # seconds after which another host's unfinished index belongs to nobody
UNFINISHED = ".unfinished"
HASH = "sha256"  # of the data file, in its index
SIZES = "sizes.json"  # bytes of each file of an index
_HASHES: dict[tuple[Path, FileKey], str] = {}  # of files that this process has read: a start asks before it indexes


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


def data_file_hash(file: Path) -> str:
    """The SHA-256 of a data file as sha256sum prints it; one that has not changed since it was indexed is not read."""
    key = FileKey.of(file)
    for home in homes(file):
        place = home / _name(key) / HASH
        if place.is_file():
            return place.read_text()
    if (file, key) not in _HASHES:
        _HASHES[file, key] = file_hash(file)
    return _HASHES[file, key]


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
    for home in homes(file):
        folder = home / _name(key)
        if folder.is_dir() and _is_whole(folder):
            return map_index(file, key, folder)
    return None


def _sizes(folder: Path) -> dict[str, int]:
    """Bytes of an index's arrays and its copy of the records, of those that are there."""
    files = {name: folder / name for name in (*Facts._fields, COPY)}
    return {name: file.stat().st_size for name, file in files.items() if file.is_file()}


def _is_whole(folder: Path) -> bool:
    """Whether an index's files are as long as when it was made; one that is cut off has other records."""
    try:
        return read_json(folder / SIZES) == _sizes(folder)
    except LlavaError:
        return False


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
        unread = [file for file, key in files.items() if (file, key) not in _HASHES]
        for file, digest in zip(unread, workers.map(file_hash, ((file,) for file in unread), alone=rows <= BLOCK)):
            _HASHES[file, files[file]] = digest
        for file, key in files.items():
            (folders[file] / HASH).write_text(_HASHES[file, key])
            (folders[file] / SIZES).write_text(json.dumps(_sizes(folders[file])))
            if FileKey.of(file) != key:
                raise DataError(f"data file {file} changed while it was read")
        return {file: map_index(file, key, _place(folders[file], key)) for file, key in files.items()}


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
    """Puts a whole index in its place, unless another process was first, and removes those of the file as it was.

    One there that is cut off gives way. Raises LlavaError where it cannot be moved.
    """
    folder = unfinished.parent / _name(key)
    sync_files(unfinished)
    if folder.is_dir() and not _is_whole(folder):
        cut_off = unfinished_in(folder.parent)
        with suppress(OSError):
            folder.rename(cut_off)
        shutil.rmtree(cut_off, ignore_errors=True)
    with suppress(FileExistsError):
        try:
            unfinished.rename(folder)
        except OSError as error:
            if error.errno != errno.ENOTEMPTY:
                raise
    if not _is_whole(folder):
        raise LlavaError(
            f"the index {folder} lacks a part, or one is cut off, and it cannot be moved: remove it by hand"
        )
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
