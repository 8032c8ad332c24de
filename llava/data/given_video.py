"""Videos in the forms that Python programs have them in, to RGB frames: a file, its URL, an array, or the frames."""

import os
import tempfile
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from PIL import Image

from llava.data.given import (
    WEB,
    as_numpy,
    eight_bits,
    fetch,
    from_pixels,
    is_array,
    is_image,
    numbered,
    rgb_image,
)
from llava.data.options import VideoOptions
from llava.data.video import EVERY_SECOND, read_evenly, read_video, spaced
from llava.errors import DataError

TAKEN = VideoOptions()


def rgb_frames(given: Any, name: str = "video", options: VideoOptions = TAKEN) -> list[Image.Image]:
    """The frames of one video in RGB.

    given: the path or URL of a file; frames, each what rgb_image takes; or all in one array, frames first.
    name: for errors. options: which frames are taken, and the channels of arrays.
    Raises DataError, naming the video.
    """
    if isinstance(given, str | os.PathLike):
        return _from_file(os.fspath(given), name, options)
    if options.fps is not None:
        raise DataError(f"{name} is given as its frames, whose rate is not known: give num_frames, or the file for fps")
    frames, reader = given, partial(rgb_image, channels=options.input_data_format)
    if is_array(given):
        frames = eight_bits(as_numpy(given), name)
        if frames.ndim != 4:
            raise DataError(f"{name} has the shape {frames.shape}; a video is (frames, H, W, C) or (frames, C, H, W)")
        is_tensor = not isinstance(given, np.ndarray)
        reader = partial(from_pixels, channels=options.input_data_format, is_tensor=is_tensor)
    if options.num_frames is not None:
        frames = [frames[index] for index in spaced(len(frames), options.num_frames, name)]
    return [reader(frame, f"frame {number} of {name}") for number, frame in numbered(frames)]


def is_video(given: Any) -> bool:
    """Whether it is one video, not several; of arrays by their dimensions. A list of texts is one of files."""
    if isinstance(given, str | os.PathLike):
        return True
    if is_array(given):
        return given.ndim <= 4
    first = given[0] if isinstance(given, Sequence) and len(given) else None
    return is_image(first) and not isinstance(first, str | os.PathLike)


def _from_file(source: str, name: str, options: VideoOptions) -> list[Image.Image]:
    if source.startswith("data:"):
        raise DataError(f"{name} is a data: URL; a video may be a path, a URL on the web, an array or its frames")
    if not source.startswith(WEB):
        return _read(source, options)
    with tempfile.NamedTemporaryFile(prefix="llava-video-") as file:
        fetch(source, file, "video")
        file.flush()
        try:
            return _read(file.name, options)
        except DataError as error:
            raise DataError(str(error).replace(file.name, source)) from None


def _read(path: str, options: VideoOptions) -> list[Image.Image]:
    if options.num_frames is None and options.fps is None and options.do_sample_frames is None:
        return list(read_video(path, EVERY_SECOND).frames)
    return read_evenly(path, options.num_frames, options.fps)
