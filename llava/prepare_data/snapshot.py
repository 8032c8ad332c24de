"""Local copies of the hub's data sets: which sets a folder holds, and the rows of parquet files, one at a time."""

import os
import shutil
from collections.abc import Iterator
from io import BytesIO
from itertools import islice, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from llava.data.images import open_image, read_header
from llava.data.json_rows import SUFFIXES, NoRecordsError, iter_records
from llava.errors import DataError, LlavaError
from llava.files import free_bytes, whole_file
from llava.prepare_data.rules import MATHV360K, MATHV360K_FILE, MATHV360K_MISSING
from llava.sizes import in_bytes

if TYPE_CHECKING:
    from pyarrow import ChunkedArray
    from pyarrow.parquet import FileMetaData

WHOLE_REPOSITORY = ("data", "default", "train")  # folders that hold a repository's only set
EXTENSIONS = {"JPEG": "jpg", "MPO": "jpg", "TIFF": "tif"}  # of formats that are not named after it
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
        return self.files[0].suffix.lower() == ".parquet"


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
    for file in files_below(source):
        folders, suffix = file.relative_to(source).parts[:-1], file.suffix.lower()
        if suffix in (".parquet", *SUFFIXES):
            _check_name(file)
        if suffix == ".parquet":
            whole = not folders or folders[0] in WHOLE_REPOSITORY
            parquet.setdefault(repository_name(source) if whole else folders[0], []).append(file)
        elif suffix in SUFFIXES:
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


def files_below(source: Path) -> list[Path]:
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


def parquet_rows(file: Path, out: Path) -> Iterator[tuple[dict, dict[str, list]]]:
    """LLaVA's record of each row, and its files, {"image" or "video": [bytes, a path, or what is neither]}.

    Columns: conversations; id, data_source; image or images, video or videos: {bytes, path}, bytes, a path, a list of
    these, or null. A struct without bytes and path is null, too. Raises DataError for a file that is not whole or whose
    images and videos would not fit on the disk of `out`.
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
        check_free(_media_bytes(reader.metadata), out, str(file))
        for batch in reader.iter_batches(batch_size=ROWS_READ, columns=columns):
            values = [_values(batch.column(name), name, file) for name in columns]
            for row in (dict(zip(columns, of_row)) for of_row in zip(*values)):
                yield row, {key: _content(row.pop(key, None)) + _content(row.pop(f"{key}s", None)) for key in FILE_KEYS}
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} is not a whole parquet file: {' '.join(str(error).split())[:200]}") from None


def _media_bytes(metadata: "FileMetaData") -> int:
    """What the columns of images and videos unpack to, as the file's last bytes say."""
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    chunks = [group.column(number) for group in groups for number in range(group.num_columns)]
    media = {*FILE_KEYS, *(f"{key}s" for key in FILE_KEYS)}
    return sum(chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema.split(".")[0] in media)


def _values(column: "ChunkedArray", name: str, file: Path) -> list:
    """A column's values as Python's; DataError for those that Arrow can hold and Python cannot."""
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        raise
    except (ValueError, OverflowError, KeyError) as error:  # a key twice, a date beyond Python's, an unknown time zone
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{file}: the column {name!r}, {column.type}, cannot be read: {reason}") from None


def _content(given: Any) -> list:
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


def check_free(size: int, out: Path, what: str) -> None:
    """Raises DataError unless `size` bytes fit on the disk of `out`. what: has so many, unpacked."""
    free = free_bytes(out)
    if size > free:
        raise DataError(f"{what} has {in_bytes(size)} unpacked, but {in_bytes(free)} are free for {out}")


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
