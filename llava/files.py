"""Files and folders: whole or not there, known by their content, and read by whom the umask lets."""

import contextlib
import errno
import hashlib
import logging
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, TypeVar

from llava.errors import PassingReadError

Value = TypeVar("Value")
logger = logging.getLogger(__name__)
PASSING = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EINTR)  # reasons for a read to fail that may pass
PAUSES = (1, 5, 15)  # seconds before a read is tried again
ENDS = 2**20  # bytes at either end of a file, by which a large one is told from others

LONGEST_PARTIAL = 255 - len("..partial")  # bytes of a name that can stand in a partial file's name


@contextlib.contextmanager
def whole_file(path: str | Path, mode: str = "w", *, errors: str | None = None, sync: bool = False) -> Iterator[IO]:
    """A stream whose content becomes the file `path` when the block ends; when it raises, `path` is as it was.

    It is written beside `path`, as `.NAME.partial`, of a very long NAME a digest of it, and renamed; a killed process
    leaves that name alone.

    Args:
        path: The file, in a folder that is there; an older one of the name is replaced.
        mode: `w` for text, in UTF-8, or `wb`.
        errors: What is done with characters that UTF-8 does not have, as for `open`.
        sync: Whether the content is on the disk before the name is, so that a loss of power leaves no empty file.

    Raises:
        OSError: It cannot be written.
    """
    path = Path(path)
    name = os.fsencode(path.name)
    short = path.name if len(name) <= LONGEST_PARTIAL else hashlib.sha256(name).hexdigest()
    partial = path.with_name(f".{short}.partial")
    try:
        with open(partial, mode, encoding=None if "b" in mode else "utf-8", errors=errors) as stream:
            yield stream
            if sync:
                stream.flush()
                os.fsync(stream.fileno())
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise


@contextlib.contextmanager
def whole_folder(path: str | Path, working: Path | None = None) -> Iterator[Path]:
    """A new folder that takes the name `path` when the block ends, and is removed when it raises.

    Args:
        path: The folder; an older one is replaced, see put_in_place.
        working: Where it stands until then, on the same disk; `PATH.unfinished` by default. What was there goes.

    Raises:
        OSError: It cannot be written.
    """
    path = Path(path).absolute()
    working = path.with_name(f"{path.name}.unfinished") if working is None else working
    try:
        shutil.rmtree(working, ignore_errors=True)
        working.mkdir(parents=True)
        yield working
        put_in_place(working, path)
    finally:
        shutil.rmtree(working, ignore_errors=True)


def put_in_place(working: Path, path: Path) -> None:
    """Renames the complete folder `working` to `path`; an older one there is deleted only afterwards.

    A process killed between the two renames leaves the older one as `PATH.replaced`, see put_back.

    Raises:
        OSError: It cannot be renamed.
    """
    follow_umask(working)
    if not path.exists():
        working.rename(path)
        return
    replaced = _replaced(path)
    shutil.rmtree(replaced, ignore_errors=True)
    path.rename(replaced)
    working.rename(path)
    shutil.rmtree(replaced, ignore_errors=True)


def put_back(path: Path) -> None:
    """Gives a folder its name back whose replacement was interrupted in the middle of put_in_place."""
    if _replaced(path).exists() and not path.exists():
        _replaced(path).rename(path)


def _replaced(path: Path) -> Path:
    return path.with_name(f"{path.name}.replaced")


def sync(path: Path) -> None:
    """Returns when a file is on the disk: a machine that loses power must not keep a name alone. Raises OSError."""
    with path.open("rb") as stream:
        os.fsync(stream.fileno())


def sync_files(folder: Path) -> dict[str, int]:
    """{path below `folder`: size in bytes} of all its files, once they are on the disk. Raises OSError."""
    sizes = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        sync(path)
        sizes[str(path.relative_to(folder))] = path.stat().st_size
    return sizes


def patiently(read: Callable[..., Value], *args: Any) -> Value:
    """What read(*args) returns; where it fails for a reason that may pass, it is tried three times more, after pauses.

    Raises:
        OSError: As `read` did, PassingReadError likewise, in the end or where the reason will not pass.
    """
    for pause in PAUSES:
        try:
            return read(*args)
        except (OSError, PassingReadError) as error:
            if isinstance(error, OSError) and error.errno not in PASSING:
                raise
            logger.warning("%s; it is tried again in %s s", error, pause)
            time.sleep(pause)
    return read(*args)


def file_hash(path: str | Path) -> str:
    """The SHA-256 of the whole file, as sha256sum prints it. OSError when it cannot be read."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def ends_hash(path: str | Path) -> str:
    """The SHA-256 of the file's size, its first and its last MiB. OSError when it cannot be read."""
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        digest = hashlib.sha256(str(size).encode() + file.read(ENDS))
        file.seek(max(size - ENDS, 0))
        digest.update(file.read(ENDS))
    return digest.hexdigest()


def existing_folder(path: str | Path) -> Path:
    """`path`, or the nearest folder above it that is there."""
    path = Path(path).absolute()
    return next(folder for folder in (path, *path.parents) if folder.exists())


def free_bytes(path: str | Path) -> int:
    """Free on the disk where `path` is, or would be made."""
    return shutil.disk_usage(existing_folder(path)).free


def follow_umask(folder: Path) -> None:
    """Gives the files in `folder` that are the writer's own the mode of a new one.

    safetensors writes weights that their owner alone can read, and copies have the mode of what they were copied from.
    What a new file looks like is tried, since the disk's own rules decide beside the umask. Raises OSError.
    """
    probe = folder / ".mode"
    probe.touch()
    new = probe.stat()
    probe.unlink()
    for path in folder.rglob("*"):
        status = path.lstat()
        if stat.S_ISREG(status.st_mode) and status.st_uid == new.st_uid and status.st_mode != new.st_mode:
            path.chmod(stat.S_IMODE(new.st_mode))


def check_readable(path: str | os.PathLike) -> None:
    """Raises OSError, with its reason as strerror, unless `path` names a file that this process may read.

    A folder is none; nor is a pipe or a device, which might never end.
    """
    try:
        mode = os.stat(path).st_mode
    except ValueError as error:  # a NUL or half a character in the name
        raise OSError(errno.EINVAL, str(error)) from None
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "it is no regular file")
    if not os.access(path, os.R_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
