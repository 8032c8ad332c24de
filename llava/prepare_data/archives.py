"""The archives of a snapshot: what records name is unpacked, within limits of each file and of the disk."""

import errno
import lzma
import os
import re
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from llava.constants import FILE_LIMITS, MEBIBYTE
from llava.errors import DataError
from llava.prepare_data.snapshot import check_free, files_below, write_whole

ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".zip")
PART = re.compile(  # of a split archive: images.zip.001, images.tar.gz.part-aa, images.part1.rar, images.z01
    r"\.(zip|7z|rar|tar(\.(gz|bz2|xz|zst))?|tgz|tbz2|txz)[._-]?(part[._-]?)?(\d{1,5}|[a-e][a-z])$|\.part\d+\.rar$|\.z\d\d$"
)
UNREAD = (".7z", ".rar", ".tar.lz", ".tar.lz4", ".tar.zst", ".tzst")
ERRORS = (  # of archives that are cut off, damaged, encrypted or packed in a way that Python does not know
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    OSError,
    RuntimeError,
)
STRIPPED = 2  # leading folders that an archive may put before the names that its records use


class Wanted(NamedTuple):
    """A file that records name: where it is to be, and its kind, `image` or `video`."""

    target: Path
    kind: str


class _Member(NamedTuple):
    """A file of an archive. size: in bytes, unpacked. open: a function that gives its content as a stream."""

    name: str
    size: int
    open: Callable[[], BinaryIO]


def archives_of(source: Path) -> list[Path]:
    """The archives of a snapshot, by name."""
    return [file for file in files_below(source) if file.name.lower().endswith(ARCHIVES)]


def left_archives(source: Path) -> Iterator[str]:
    """A line for each file of a snapshot that looks like an archive and is not read."""
    for file in files_below(source):
        name = file.name.lower()
        if name.endswith(ARCHIVES):
            continue
        if PART.search(name):
            yield f"{file} is a part of a split archive; join the parts, in their order, to one file"
        elif name.endswith(UNREAD):
            yield f"{file} is an archive of a form that is not read; unpack it, or pack it anew as tar or zip"


def extract(archive: Path, wanted: dict[str, Wanted], taken: dict[Path, str]) -> dict[str, str]:
    """Writes the members that are wanted, by the names that records use; what exists already is left.

    The archive may put up to two folders before the names. No other name is written to, whatever the archive holds.

    Args:
        archive: The file.
        wanted: What is to be written.
        taken: {where to: archive and member} of those before, grows.

    Returns:
        {name: why} of the members that are refused: larger than FILE_LIMITS, or in another file's way.

    Raises:
        DataError: The archive is damaged, the disk too small, or two members of one file have contents that differ, of
            which neither is left.
    """
    refused = {}
    try:
        _check_sum(archive, wanted)
        for member in _members(archive):
            name = _wanted_name(member, wanted)
            if name is None:
                continue
            target, kind = wanted[name]
            if member.size > FILE_LIMITS[kind]:
                refused[name] = f"{archive} holds {member.name} of {too_large(member.size, kind)}"
            elif target in taken:
                _check_same(target, member, f"{archive} holds {member.name} with another content than {taken[target]}")
            elif (reason := _write(target, member, archive)) is not None:
                refused[name] = f"{archive} holds {member.name}, {reason}"
            else:
                taken[target] = f"{member.name} of {archive.name}"
    except ERRORS as error:
        raise DataError(f"{archive} cannot be unpacked: {getattr(error, 'strerror', None) or error}") from None
    return refused


def too_large(size: int, kind: str) -> str:
    """That an image or a video of so many bytes is more than is taken, with both numbers."""
    return f"{size / MEBIBYTE:,.1f} MiB; {FILE_LIMITS[kind] // MEBIBYTE:,} MiB of one {kind} are taken at most"


def _write(target: Path, member: _Member, archive: Path) -> str | None:
    """Writes a member unless it is there; or why it cannot be: its name, or a file at the place of a folder."""
    if os.path.isfile(target):
        return None
    check_free(member.size, target.parent, f"{member.name} of {archive}")
    try:
        with member.open() as content:
            write_whole(target, content)
    except (FileExistsError, NotADirectoryError, IsADirectoryError):
        if target.is_dir():
            return f"but {target} is a folder, of other members"
        return f"but {next(path for path in target.parents if path.is_file())} is a file, another member"
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        return f"a name of {len(target.name.encode())} bytes, which is too long for a file here"
    return None


def _check_sum(archive: Path, wanted: dict[str, Wanted]) -> None:
    """Raises DataError for a zip, which tells its sizes at its end, of which the disk cannot hold what is wanted."""
    if archive.suffix.lower() != ".zip":
        return
    needed, folder = 0, archive
    for member in _members(archive):
        name = _wanted_name(member, wanted)
        if (
            name is not None
            and member.size <= FILE_LIMITS[wanted[name].kind]
            and not os.path.exists(wanted[name].target)
        ):
            needed, folder = needed + member.size, wanted[name].target.parent
    check_free(needed, folder, f"what records name of {archive}")


def _wanted_name(member: _Member, wanted: dict[str, Wanted]) -> str | None:
    parts = member.name.removeprefix("./").split("/")
    names = ("/".join(parts[skipped:]) for skipped in range(min(STRIPPED + 1, len(parts))))
    return next((name for name in names if name in wanted), None)


def _check_same(target: Path, member: _Member, fault: str) -> None:
    with member.open() as content, open(target, "rb") as earlier:
        is_same = all(content.read(len(block)) == block for block in _blocks(earlier)) and not content.read(1)
    if not is_same:
        target.unlink()  # so that it is taken anew from a mended archive
        raise DataError(f"{fault}; leave the one that the records mean")


def _blocks(stream: BinaryIO) -> Iterator[bytes]:
    while block := stream.read(MEBIBYTE):
        yield block


def _members(archive: Path) -> Iterator[_Member]:
    """Each file, in the archive's order."""
    if archive.suffix.lower() == ".zip":
        with zipfile.ZipFile(archive) as reader:
            for member in reader.infolist():
                if not member.is_dir():
                    yield _Member(member.filename, member.file_size, lambda member=member: reader.open(member))
    else:
        with tarfile.open(archive, "r|*") as reader:
            for member in reader:
                if member.isfile():
                    yield _Member(member.name, member.size, lambda member=member: reader.extractfile(member))
