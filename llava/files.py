"""How written files look to others than their writer."""

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
