"""Whether a file can be read, and how written files look to others than their writer."""

import errno
import os
import stat
from pathlib import Path


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
        found = path.lstat()
        if stat.S_ISREG(found.st_mode) and found.st_uid == new.st_uid and found.st_mode != new.st_mode:
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
