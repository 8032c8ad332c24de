"""Local copies of the hub's data sets: which sets a folder holds, and their rows and images, one at a time."""

import lzma
import os
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from io import BytesIO
from itertools import islice, pairwise
from pathlib import Path
from typing import BinaryIO, NamedTuple

from llava.data.images import open_image, read_header
from llava.data.json_rows import SUFFIXES, NoRecordsError, iter_records
from llava.errors import DataError, LlavaError
from llava.files import whole_file
from llava.prepare_data.rules import MATHV360K, MATHV360K_FILE, MATHV360K_MISSING

ARCHIVES = (".tar", ".tar.gz", ".tgz", ".zip")
WHOLE_REPOSITORY = ("data", "default", "train")  # folders that hold a repository's only set
EXTENSIONS = {"JPEG": "jpg", "MPO": "jpg", "TIFF": "tif"}  # of formats that are not named after it
ARCHIVE_ERRORS = (  # of archives that are cut off, damaged, encrypted or packed in a way that Python does not know
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    OSError,
    RuntimeError,
)
STRIPPED = 2  # leading folders that an archive may put before the names that its records use
FILE_KEYS = ("image", "video")
PARQUET_COLUMNS = ("id", "data_source", "conversations", "image", "images", "video", "videos")
FIRST_RECORDS = 20  # of a JSON file, by which it is a set or none
ROWS_READ = 64  # rows of a parquet file that are held at a time, with their images


class SourceSet(NamedTuple):
    """A set of a snapshot: parquet files with the images inside, or one JSON or JSONL file."""

    name: str
    files: tuple[Path, ...]

    @property
    def is_parquet(self) -> bool:
        """Whether its rows are in parquet files."""
        return self.files[0].suffix == ".parquet"


def repository_name(source: Path) -> str:
    """The data set's name on the hub, from a folder that bears it or from the hub's cache."""
    source = source.resolve()
    cached = source.parent.parent.name if source.parent.name == "snapshots" else ""
    return cached.rpartition("--")[2] if cached.startswith("datasets--") else source.name


def find_sets(source: Path) -> tuple[list[SourceSet], list[Path]]:
    """The sets of a snapshot, by name, and the JSON files that hold no conversations.

    Parquet files make one set per top folder, named after it, or one of the repository's name. A JSON file is named
    without its ending "_processed". MathV360K's one file is given for each of the subsets that are taken from it.
    Raises LlavaError when there is none, or two of one name.
    """
    if not source.is_dir():
        raise LlavaError(f"{source} is not a folder")
    _check_name(source.resolve())
    parquet: dict[str, list[Path]] = {}
    sets, others = [], []
    for file in _files(source):
        folders = file.relative_to(source).parts[:-1]
        if file.suffix in (".parquet", *SUFFIXES):
            _check_name(file)
        if file.suffix == ".parquet":
            whole = not folders or folders[0] in WHOLE_REPOSITORY
            parquet.setdefault(repository_name(source) if whole else folders[0], []).append(file)
        elif file.suffix in SUFFIXES:
            if not _has_conversations(file):
                others.append(file)
            elif file.stem == MATHV360K_FILE:
                sets += [SourceSet(f"{subset}({MATHV360K})", (file,)) for subset in MATHV360K_MISSING]
            else:
                sets.append(SourceSet(file.stem.removesuffix("_processed"), (file,)))
    sets += [SourceSet(name, tuple(files)) for name, files in parquet.items()]
    sets.sort()
    for one, other in pairwise(sets):
        if one.name == other.name:
            raise LlavaError(f"{source} holds two sets of the name {one.name}: {one.files[0]} and {other.files[0]}")
    if not sets:
        raise LlavaError(f"{source} holds no parquet, JSON or JSONL file with conversations")
    return sets, others


def _check_name(path: Path) -> None:
    """Raises LlavaError for a name that is no UTF-8: records would have to hold it."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise LlavaError(f"{os.fsencode(path)!r} is no name in UTF-8; rename it") from None


def _files(source: Path) -> list[Path]:
    """All files but hidden ones: the hub's client keeps its own in a hidden folder."""
    return sorted(
        Path(folder, file)
        for folder, subfolders, files in os.walk(source, followlinks=True)
        if not any(part.startswith(".") for part in Path(folder).relative_to(source).parts)
        for file in files
        if not file.startswith(".")
    )


def _has_conversations(file: Path) -> bool:
    """By its first records: one of a set that is odd is dropped and told when the set is prepared."""
    try:
        first = list(islice(iter_records(file), FIRST_RECORDS))
    except NoRecordsError:
        return False
    except DataError:
        return True  # a broken file is named when it is read
    return any(isinstance(record, dict) and "conversations" in record for record in first)


def parquet_rows(file: Path) -> Iterator[tuple[dict, dict[str, list]]]:
    """LLaVA's record of each row, and its files, {"image" or "video": [bytes, a path, or what is neither]}.

    Columns: conversations; id, data_source; image or images, video or videos: {bytes, path}, bytes, a path, a list of
    these, or null. A struct without bytes and path is null, too.
    """
    try:
        import pyarrow
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise LlavaError("parquet files need pyarrow: pip install 'llava-ov-manager[data]'") from None
    try:
        reader = ParquetFile(file)
        names = reader.schema_arrow.names
        if "conversations" not in names:
            raise DataError(f"{file} has no column 'conversations'; found {', '.join(names)}")
        columns = [name for name in PARQUET_COLUMNS if name in names]
        for batch in reader.iter_batches(batch_size=ROWS_READ, columns=columns):
            values = [_values(batch.column(name), name, file) for name in columns]
            for row in (dict(zip(columns, of_row)) for of_row in zip(*values)):
                yield row, {key: _content(row.pop(key, None)) + _content(row.pop(f"{key}s", None)) for key in FILE_KEYS}
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} is not a whole parquet file: {' '.join(str(error).split())[:200]}") from None


def _values(column, name: str, file: Path) -> list:
    """A column's values as Python's; DataError for those that Arrow can hold and Python cannot."""
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        raise
    except (ValueError, OverflowError, KeyError) as error:  # a key twice, a date beyond Python's, an unknown time zone
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{file}: the column {name!r}, {column.type}, cannot be read: {reason}") from None


def _content(given) -> list:
    """A column's value as a list of bytes and paths; what is null is left out."""
    entries = given if isinstance(given, list) else [given]
    entries = [_of_struct(entry) if isinstance(entry, dict) else entry for entry in entries]
    return [entry for entry in entries if entry is not None]


def _of_struct(entry: dict) -> bytes | str | None:
    """Bytes, or else the path; bytes that are empty where there is no path either."""
    return entry.get("bytes") or entry.get("path") or entry.get("bytes")


def image_header(content: bytes, name: str, decode: bool) -> tuple[str, tuple[int, int]]:
    """(file name's extension, (width, height)) of an image; DataError for what is none, and for a bomb.

    decode: read its pixels too, since damage in the middle leaves its first bytes whole.
    """
    kind, size = read_header(BytesIO(content), name)
    if decode:
        open_image(BytesIO(content), name)
    return EXTENSIONS.get(kind, kind.lower()), size


def video_extension(content: bytes) -> str:
    """A file name's extension for a video, by its first bytes: readers look at the content."""
    if content.startswith(b"\x1aE\xdf\xa3"):
        return "webm" if b"webm" in content[:64] else "mkv"
    return "avi" if content[:4] == b"RIFF" and content[8:12] == b"AVI " else "mp4"


def archives_of(source: Path) -> list[Path]:
    """The archives of a snapshot, by name."""
    return [file for file in _files(source) if file.name.endswith(ARCHIVES)]


def extract(archive: Path, wanted: dict[str, Path], taken: dict[Path, str]) -> int:
    """Writes the members that are wanted, {name: where to}, and returns how many; what exists already is left.

    The archive may put up to two folders before the names. No other name is written to, whatever the archive holds.
    taken: {where to: archive and member} of those before, grows. Raises DataError for two members of one file whose
    contents differ, and neither is left.
    """
    count = 0
    try:
        for name, stream in _members(archive):
            parts = name.removeprefix("./").split("/")
            names = ["/".join(parts[skipped:]) for skipped in range(min(STRIPPED + 1, len(parts)))]
            target = next((wanted[name] for name in names if name in wanted), None)
            if target is None:
                continue
            count += 1
            if target in taken:
                _check_same(target, stream, f"{archive} holds {name} with another content than {taken[target]}")
            else:
                taken[target] = f"{name} of {archive.name}"
                if not target.exists():
                    with stream() as content:
                        write_whole(target, content)
    except ARCHIVE_ERRORS as error:
        raise DataError(f"{archive} cannot be unpacked: {error}") from None
    return count


def _check_same(target: Path, stream: Callable, fault: str) -> None:
    with stream() as content, open(target, "rb") as known:
        is_same = all(content.read(size) == block for size, block in _blocks(known)) and not content.read(1)
    if not is_same:
        target.unlink()  # so that it is taken anew from a mended archive
        raise DataError(f"{fault}; leave the one that the records mean")


def _blocks(stream: BinaryIO) -> Iterator[tuple[int, bytes]]:
    while block := stream.read(1 << 20):
        yield len(block), block


def _members(archive: Path) -> Iterator:
    """(name, a function that opens it) of each file, in the archive's order."""
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive) as reader:
            for member in reader.infolist():
                if not member.is_dir():
                    yield member.filename, lambda member=member: reader.open(member)
    else:
        with tarfile.open(archive, "r|*") as reader:
            for member in reader:
                if member.isfile():
                    yield member.name, lambda member=member: reader.extractfile(member)


def place_whole(target: Path, source: Path) -> None:
    """Brings a file to its place: as a hard link where the file system can, else as a copy."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source.resolve(), target)
    except OSError:  # another file system, or it is there
        with open(source, "rb") as stream:
            write_whole(target, stream)


def write_whole(target: Path, content: BinaryIO | bytes) -> None:
    """Writes a file that appears only when it is complete."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(target, "wb") as stream:
        if isinstance(content, bytes):
            stream.write(content)
        else:
            shutil.copyfileobj(content, stream)
