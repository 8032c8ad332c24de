"""Images and videos that a user names: a path, a URL, or what the clipboard holds."""

import os
import stat
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from PIL import ImageGrab

from llava.chat.paths import local_path, locate
from llava.constants import FILE_LIMITS, MEBIBYTE
from llava.data.images import read_header, read_image
from llava.data.video import VideoSampling, read_video
from llava.errors import DataError, MissingFileError, OversizedImageError
from llava.fetch import check_url, fetch, is_url
from llava.files import file_hash

SUFFIXES = {
    "image": {
        *(".apng", ".avif", ".bmp", ".dib", ".gif", ".heic", ".heif", ".ico", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg"),
        *(".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".qoi", ".tga", ".tif", ".tiff", ".webp"),
    },
    "video": {
        *(".3gp", ".avi", ".flv", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ogv", ".webm", ".wmv"),
    },
}


@dataclass(frozen=True, eq=False)
class Medium:
    """An image or a video, opened.

    kind: `image` or `video`. source: what the user named. path: the file, absolute. sha256: of the file.
    content: a PIL image, or a video's frames. measures: its size, in words. notes: what was done to it, in words.
    fetched: whether the file is a temporary one, since the source is no path.
    sampling: which frames of a video were taken; None for an image.
    """

    kind: str
    source: str
    path: Path
    sha256: str
    content: Any
    measures: str
    notes: tuple[str, ...] = ()
    fetched: bool = False
    sampling: VideoSampling | None = None

    def __str__(self) -> str:
        return f"{self.source}: {', '.join([self.measures, *self.notes])}"


class MediaReader:
    """Opens images and videos; what comes from the web or the clipboard lies in a folder that goes when this does."""

    def __init__(self, sampling: VideoSampling):
        self.sampling = sampling
        self._folder = tempfile.TemporaryDirectory(prefix="llava-chat-")
        self._count = 0

    def open(self, source: str, kind: str) -> Medium:
        """An image or a video from a path (`~` is the home), a file:// URL or a URL on the web.

        Raises DataError with one line that names the source.
        """
        if is_url(source) and not source.lower().startswith("file:"):
            check_url(source)
            target = self._new_file(Path(urlsplit(source).path).suffix)
            fetch(source, target, kind, FILE_LIMITS[kind])
            return self._opened(target, source, kind, fetched=True)
        return self._opened(locate(source) or local_path(source), source, kind)

    def open_stored(
        self, path: Path, sha256: str, source: str, kind: str, sampling: VideoSampling | None = None
    ) -> Medium:
        """A file that was opened before, of a video the frames that were taken then.

        Raises DataError that names the path, also for a file that has changed.
        """
        medium = self._opened(path, str(path), kind, sampling=sampling, sha256=sha256)
        return replace(medium, source=source)

    def from_clipboard(self) -> list[Medium]:
        """The image, or the image files, that the clipboard holds. Raises DataError when there are none."""
        try:
            held = ImageGrab.grabclipboard()
        except (NotImplementedError, OSError, ValueError) as error:  # no helper program, no display, no image
            raise DataError(f"the clipboard cannot be read here: {' '.join(str(error).split())}") from None
        if isinstance(held, list):
            held = [self.open(name, kind) for name in held if (kind := kind_of(name))]
        if not held:
            raise DataError("the clipboard holds no image")
        if isinstance(held, list):
            return held
        target = self._new_file(".png")
        held.save(target)
        return [self._opened(target, "clipboard", "image", fetched=True)]

    def _new_file(self, suffix: str) -> Path:
        self._count += 1
        return Path(self._folder.name) / f"{self._count}{suffix.lower()}"

    def _opened(
        self,
        path: Path,
        source: str,
        kind: str,
        *,
        fetched: bool = False,
        sampling: VideoSampling | None = None,
        sha256: str | None = None,
    ) -> Medium:
        _check_file(path, source, kind)
        digest = file_hash(path)
        if sha256 not in (None, digest):
            raise DataError(f"{kind} {source} has changed: its sha256 is {digest[:12]}..., it was {sha256[:12]}...")
        if kind == "image":
            content, notes = read_image(path, source)
            measures = f"{content.width}x{content.height}"
            return Medium(kind, source, path, digest, content, measures, tuple(notes), fetched)
        sampling = sampling or self.sampling
        try:
            video = read_video(path, sampling)
        except DataError as error:
            raise DataError(str(error).replace(str(path), source)) from None
        width, height = video.frames[0].size
        measures = f"{width}x{height}, {len(video.frames)} frames of {video.duration:.1f} seconds"
        return Medium(kind, source, path, digest, video.frames, measures, (), fetched, sampling)


def kind_of(name: str) -> str | None:
    """`image` or `video`, by the end of a path or a URL; None for others."""
    try:
        suffix = Path(urlsplit(name).path if is_url(name) else name).suffix.lower()
    except ValueError:  # http://[1/a.png
        return None
    return next((kind for kind, suffixes in SUFFIXES.items() if suffix in suffixes), None)


def is_image(path: Path) -> bool:
    """Whether a file's first bytes are those of an image that can be read."""
    try:
        read_header(path, str(path))
    except OversizedImageError:
        return True  # so that it is told why it is refused
    except DataError:
        return False
    return True


def _check_file(path: Path, source: str, kind: str) -> None:
    """Raises DataError unless it is a file of readable size; a pipe or a device could be read for ever."""
    try:
        status = path.stat()
    except FileNotFoundError:
        raise MissingFileError(f"{kind} {source} does not exist") from None
    except (OSError, ValueError) as error:  # no permission, a name that is too long, a null byte
        raise DataError(f"{kind} {source} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if stat.S_ISDIR(status.st_mode):
        raise DataError(f"{kind} {source} is a folder")
    if not stat.S_ISREG(status.st_mode):
        raise DataError(f"{kind} {source} is no regular file")
    if status.st_size > FILE_LIMITS[kind]:
        size, limit = status.st_size / MEBIBYTE, FILE_LIMITS[kind] / MEBIBYTE
        raise DataError(f"{kind} {source} has {size:.1f} MiB; at most {limit:g} are read")
    if not os.access(path, os.R_OK):
        raise DataError(f"{kind} {source} cannot be read: permission denied")
