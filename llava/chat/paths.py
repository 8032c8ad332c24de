"""The file that a text means: a path as a user, a terminal or another system writes it, or a file:// URL."""

import os
import re
import unicodedata
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

from llava.errors import DataError

_DRIVE = re.compile(r"/?([A-Za-z]):[\\/]+(.*)", re.DOTALL)
_FILE_URL = re.compile(r"file:(?://[^/]*)?", re.IGNORECASE)


def local_path(source: str) -> Path:
    """The file that a path (`~` is the home) or a file:// URL names. Raises DataError for a URL of another host."""
    if not source.lower().startswith("file:"):
        return Path(os.path.abspath(os.path.expanduser(source)))
    try:
        host = urlsplit(source).netloc
    except ValueError as error:
        raise DataError(f"{source} is not a URL: {error}") from None
    if host not in ("", "localhost"):
        raise DataError(f"{source} is refused: the file is on another host")
    return Path(os.path.abspath(unquote(_FILE_URL.sub("", source, count=1))))


def locate(source: str) -> Path | None:
    """The existing file or folder that `source` means; None where there is none.

    As it stands first. Then with the drives, backslashes and %20 of other systems, with variables, and with accents
    and blanks in another form: macOS puts U+202F into the names of its screenshots, which nobody can type.
    """
    try:
        readings = list(dict.fromkeys(_readings(source)))
    except (DataError, OSError, ValueError):
        return None
    return next(filter(_exists, readings), None) or next(filter(None, map(_alike, readings)), None)


def _readings(source: str) -> Iterator[Path]:
    yield local_path(source)
    name = _FILE_URL.sub("", source, count=1)
    if drive := _DRIVE.fullmatch(unquote(name)):
        yield Path("/mnt", drive[1].lower(), drive[2].replace("\\", "/"))  # where Linux under Windows has them
    if name != source:
        yield Path(os.path.abspath(name))  # a % that a proper URL would write as %25
    elif "\\" in name:
        yield local_path(name.replace("\\", "/"))
    elif "%" in name:
        yield local_path(unquote(name))
    elif "$" in name:
        yield local_path(os.path.expandvars(name))


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name too long, a null byte
        return False


def _alike(path: Path) -> Path | None:
    """A path that exists and differs in the form of accents and blanks only."""
    folder = Path(path.anchor)
    for name in path.parts[1:]:
        if not _exists(folder / name):
            try:
                names = _names(folder, folder.stat().st_mtime_ns)
            except (OSError, ValueError):
                return None
            name = names.get(plain(name))
            if name is None:
                return None
        folder /= name
    return folder


@lru_cache(maxsize=16)
def _names(folder: Path, changed: int) -> dict[str, str]:
    """{plain form: name} of a folder's entries; `changed` is its time of change."""
    return {plain(name): name for name in sorted(os.listdir(folder), reverse=True)}


def plain_names(folder: Path) -> set[str]:
    """The entries of a folder, each as `plain`; none of one that cannot be read."""
    try:
        return set(_names(folder, folder.stat().st_mtime_ns))
    except OSError:
        return set()


def plain(name: str) -> str:
    """The name with one form of accents and blanks."""
    return name if name.isascii() else re.sub(r"\s", " ", unicodedata.normalize("NFC", name))
