"""The folder in which a data file's images and videos lie, and which of its paths may lead out of it."""

import os
import stat
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from llava.data.schema import OutsidePaths
from llava.errors import OutsideError
from llava.printable import one_line


@dataclass(frozen=True)
class ImageFolder:
    """An image folder.

    A data file may be somebody else's, and what a model is shown can be read in logs and answers: a path of it must not
    reach other files of this machine.

    Args:
        path: The folder.
        outside: Which paths may lead out of it: none (`refuse`), those that follow a symbolic link which stands in the
            folder (`links`), since its owner has put it there, or `any`, absolute and climbing ones too.
    """

    path: Path
    outside: OutsidePaths = "refuse"

    @classmethod
    def of(cls, folder: "str | Path | ImageFolder") -> "ImageFolder":
        """The folder itself, or the one of that path, out of which nothing leads."""
        return folder if isinstance(folder, ImageFolder) else cls(Path(folder))

    def file(self, path: str) -> Path:
        """Where an image or a video lies. Raises OutsideError for a path that may not be followed."""
        reason = self.why_refused(path)
        if reason is not None:
            raise OutsideError(one_line(f"the path {path} {reason} (see outside_paths)"))
        return self.path / path

    def why_refused(self, path: str) -> str | None:
        """Why a path may not be followed; None when it may."""
        if self.outside == "any":
            return None
        if self.outside == "links":
            return _why_not_plain(path, os.pardir in path.split(os.sep))
        return why_outside(path, self.path)

    def status(self, path: str) -> os.stat_result:
        """As os.stat, of a file that may be followed. Raises OutsideError as `file` does, and OSError."""
        root = str(self.path)  # asked for once, and joined by hand: this is done for millions of images
        file = path if path.startswith(os.sep) else f"{root}{os.sep}{path}"
        status = os.lstat(file)
        is_plain = self.outside == "any" or (path[0] != os.sep and os.pardir not in path)
        is_inside = is_plain and (self.outside != "refuse" or _is_below(file[: file.rfind(os.sep) + 1], root))
        if is_inside and not stat.S_ISLNK(status.st_mode):
            return status
        return os.stat(self.file(path))


def why_outside(path: str, folder: Path) -> str | None:
    """Why a path does not lie inside a folder; None when it does. Symbolic links are followed."""
    reason = _why_not_plain(path, os.path.normpath(path).split(os.sep)[0] == os.pardir)
    if reason is not None:
        return reason
    root, parent, file = _real_folder(str(folder)), *os.path.split(os.path.join(folder, path))
    real = os.path.join(_real_folder(parent), file)
    if os.path.islink(real):
        real = os.path.realpath(real)
    if not os.path.join(real, "").startswith(os.path.join(root, "")):
        return f"leads to {real}, outside the image folder"
    return None


def _why_not_plain(path: str, climbs: bool) -> str | None:
    if os.path.isabs(path):
        return "is absolute, not relative to the image folder"
    return "climbs out of the image folder" if climbs else None


@lru_cache(maxsize=65536)
def _is_below(folder: str, root: str) -> bool:
    return os.path.join(_real_folder(folder), "").startswith(os.path.join(_real_folder(root), ""))


@lru_cache(maxsize=65536)
def _real_folder(folder: str) -> str:
    """The folder without symbolic links; asked for once, since thousands of images share a folder."""
    return os.path.realpath(folder)
