"""Local copies of the hub's data sets: which sets a folder holds, and their rows and images, one at a time."""

import os
import shutil
import tarfile
import zipfile
from collections.abc import Iterator
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO, NamedTuple

from llava.data.images import read_header
from llava.data.prepare_rules import MATHV360K, MATHV360K_FILE, MATHV360K_MISSING
from llava.data.records import iter_records
from llava.errors import DataError, LlavaError

ARCHIVES = (".tar", ".tar.gz", ".tgz", ".zip")
WHOLE_REPOSITORY = ("data", "default", "train")  # folders that hold a repository's only set
EXTENSIONS = {"JPEG": "jpg", "MPO": "jpg", "TIFF": "tif"}  # of formats that are not named after it
STRIPPED = 2  # leading folders that an archive may put before the names that its records use
ROWS_READ = 64  # rows of a parquet file that are held at a time, with their images


class SourceSet(NamedTuple):
    """A set of a snapshot: parquet files with the images inside, or one JSON or JSONL file."""

    name: str
    files: tuple[Path, ...]

    @property
    def is_parquet(self) -> bool:
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
    parquet: dict[str, list[Path]] = {}
    sets, others = [], []
    for file in _files(source):
        folders = file.relative_to(source).parts[:-1]
        if file.suffix == ".parquet":
            whole = not folders or folders[0] in WHOLE_REPOSITORY
            parquet.setdefault(repository_name(source) if whole else folders[0], []).append(file)
        elif file.suffix in (".json", ".jsonl"):
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
    try:
        first = next(iter_records(file), None)
    except DataError:  # a broken file is named when it is read, one that holds no list is none of LLaVA's
        return file.suffix == ".jsonl" or file.read_bytes()[:1] == b"["
    return isinstance(first, dict) and "conversations" in first


def parquet_rows(file: Path) -> Iterator[tuple[dict, list[bytes | str]]]:
    """LLaVA's record of each row, and its images: bytes, or a path.

    Columns: conversations; id, data_source; image or images: {bytes, path}, bytes, a list of either, or null.
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
        columns = [name for name in ("id", "conversations", "image", "images", "data_source") if name in names]
        for batch in reader.iter_batches(batch_size=ROWS_READ, columns=columns):
            for row in batch.to_pylist():
                images = [row.pop(name) for name in ("image", "images") if name in row]
                yield row, [_image(image, file) for given in images for image in _listed(given)]
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise DataError(f"{file} is not a whole parquet file: {' '.join(str(error).split())[:200]}") from None


def _listed(given) -> list:
    return [] if given is None else given if isinstance(given, list) else [given]


def _image(image, file: Path) -> bytes | str:
    if isinstance(image, dict):
        image = image.get("bytes") or image.get("path")
    if not isinstance(image, bytes | str):
        raise DataError(f"{file} has an image that is neither bytes nor a path: {type(image).__name__}")
    return image


def image_header(content: bytes | Path) -> tuple[str, tuple[int, int]]:
    """(file name's extension, (width, height)) from an image's first bytes; DataError for no image and for a bomb."""
    kind, size = read_header(BytesIO(content) if isinstance(content, bytes) else content, "in a row")
    return EXTENSIONS.get(kind, kind.lower()), size


def archives_of(source: Path) -> list[Path]:
    """The archives of a snapshot, by name."""
    return [file for file in _files(source) if file.name.endswith(ARCHIVES)]


def extract(archive: Path, wanted: dict[str, Path]) -> int:
    """Writes the members that are wanted, {name: where to}, and returns how many; what exists already is left.

    The archive may put up to two folders before the names. No other name is written to, whatever the archive holds.
    """
    count = 0
    try:
        for name, stream in _members(archive):
            parts = name.removeprefix("./").split("/")
            names = ["/".join(parts[skipped:]) for skipped in range(min(STRIPPED + 1, len(parts)))]
            target = next((wanted[name] for name in names if name in wanted), None)
            if target is not None:
                count += 1
                if not target.exists():
                    with stream() as content:
                        write_whole(target, content)
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError) as error:
        raise DataError(f"{archive} cannot be unpacked: {error}") from None
    return count


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


def write_whole(target: Path, content: BinaryIO | bytes) -> None:
    """Writes a file that appears only when it is complete."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial")
    with open(partial, "wb") as stream:
        if isinstance(content, bytes):
            stream.write(content)
        else:
            shutil.copyfileobj(content, stream)
    os.replace(partial, target)
