"""What is known of the images and videos that a data file's records name: sizes and frames, without decoding a pixel.

It is kept beside the file's index, one array per image folder, with each file's size, time of change and mode: a start
looks at these alone and opens only what has changed. What could not be read is always opened again.
"""

import hashlib
import os
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from pathlib import Path
from uuid import uuid4

import numpy as np
import PIL

from llava.data.image_folder import ImageFolder
from llava.data.images import image_size
from llava.data.index import RecordIndex, map_array
from llava.data.indexing import homes, unfinished_in
from llava.data.video import VideoSampling, probe_video
from llava.data.workers import Workers
from llava.errors import DataError, LlavaError
from llava.files import patiently, sync

VERSION = 2
BLOCK = 1000
REMEMBERED = 1 << 16  # files that a process remembers to have looked at: samples share images
UNSEEN, GONE = -1, -2  # in place of a size in bytes
# width, height: of the upright image. frames: that are taken of a video. All 0 for what cannot be read.
VISUAL = np.dtype(
    [("width", "<i4"), ("height", "<i4"), ("frames", "<i4"), ("size", "<i8"), ("modified", "<i8"), ("mode", "<u4")]
)


def read_visuals(
    index: RecordIndex, wanted: np.ndarray, image_folder: ImageFolder, video_sampling: VideoSampling, workers: Workers
) -> np.ndarray:
    """What is known (VISUAL) of each image and video of the data file, counted over the file.

    wanted: which of them are looked at now, bool (V,); others may be UNSEEN. The result is mapped where it is kept.
    """
    name = _name(image_folder, video_sampling)
    visuals = _kept(index, name)
    look = uuid4().hex
    tasks = ((index, numbers, visuals[numbers], image_folder, video_sampling, look) for numbers in _blocks(wanted))
    changed = None
    for numbers, now in zip(_blocks(wanted), workers.map(_look, tasks, alone=wanted.sum() <= BLOCK)):
        if now is not None:
            changed = np.array(visuals) if changed is None else changed
            changed[numbers] = now
    if changed is None:
        return visuals
    if index.folder is None:
        return changed
    return map_array(_keep(index, name, changed), VISUAL)


def _blocks(wanted: np.ndarray) -> Iterator[np.ndarray]:
    """The numbers of those that are wanted, at most BLOCK at a time."""
    for begin in range(0, len(wanted), BLOCK):
        numbers = begin + np.flatnonzero(wanted[begin : begin + BLOCK])
        if len(numbers):
            yield numbers


def _name(image_folder: ImageFolder, video_sampling: VideoSampling) -> str:
    where = repr((os.path.realpath(image_folder.path), video_sampling, PIL.__version__))
    return f"visuals-{VERSION}-{hashlib.sha256(os.fsencode(where)).hexdigest()[:16]}"


def _places(index: RecordIndex, name: str) -> list[Path]:
    """Beside the index, or in the cache where another user owns that; none for an index in memory."""
    if index.folder is None:
        return []
    return list(dict.fromkeys([index.folder / name, homes(index.file)[-1] / index.folder.name / name]))


def _kept(index: RecordIndex, name: str) -> np.ndarray:
    number = len(index.facts.path_ends)
    for place in _places(index, name):
        if place.is_file():
            return map_array(place, VISUAL)
    unseen = np.zeros(number, VISUAL)
    unseen["size"] = UNSEEN
    return unseen


def _keep(index: RecordIndex, name: str, visuals: np.ndarray) -> Path:
    reasons = []
    for place in _places(index, name):
        unfinished = None
        try:
            unfinished = unfinished_in(place.parent)
            visuals.tofile(unfinished)
            sync(unfinished)
            unfinished.rename(place)
            return place
        except OSError as error:
            if unfinished:
                unfinished.unlink(missing_ok=True)
            reasons.append(f"{place.parent}: {error.strerror}")
    raise LlavaError(f"the image sizes of {index.file} cannot be written ({'; '.join(reasons)})")


def _look(
    index: RecordIndex,
    numbers: np.ndarray,
    before: np.ndarray,
    folder: ImageFolder,
    video_sampling: VideoSampling,
    look: str,
) -> np.ndarray | None:
    """The images and videos as they are now; None where all are as before. look: the pass that this is part of."""
    paths = list(index.paths(numbers))
    state = _states(folder, look)
    now = before.copy()
    now["size"], now["modified"], now["mode"] = np.array([state(path) for path, _ in paths], dtype=np.int64).T
    sized = (before["width"] > 0) | (before["frames"] > 0)
    for place in np.flatnonzero(~sized | (now != before)).tolist():
        now["width"][place], now["height"][place], now["frames"][place] = _read(folder, *paths[place], video_sampling)
    return None if np.array_equal(now, before) else now


@lru_cache(maxsize=1)
def _states(folder: ImageFolder, look: str) -> Callable[[str], tuple[int, int, int]]:
    """_state of a folder's files, of which a file is asked once in a pass where samples that share it are near."""
    return lru_cache(REMEMBERED)(partial(_state, folder))


def _state(folder: ImageFolder, path: str) -> tuple[int, int, int]:
    try:
        status = patiently(folder.status, path)
    except (OSError, ValueError):
        return GONE, 0, 0
    return status.st_size, status.st_mtime_ns, status.st_mode


def _read(folder: ImageFolder, path: str, is_video: bool, video_sampling: VideoSampling) -> tuple[int, int, int]:
    try:
        file = folder.file(path)
        if is_video:
            return 0, 0, len(patiently(probe_video, file, video_sampling).times)
        return (*patiently(image_size, file), 0)
    except DataError:
        return 0, 0, 0
