"""From a video file to the frames that the model sees. Needs decord2 (the extra `video`), imported for a video.

decord2 is decord with a current ffmpeg, under the same name; where decord itself is installed, that is used.

Nothing is kept between calls and every reader decodes with one thread, so that data loader workers, forked or spawned,
and the threads of `llava data check` may all read at once.
"""

import math
import os
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from llava.errors import DataError, LlavaError, MissingFileError, PassingReadError
from llava.files import PASSING, check_readable

CLOSE = 1e-3  # seconds: times come as float32, and containers round them
NO_SUBSTITUTES = 1e-9  # decord's fault_tol, a share of the frames: a single frame replaced by a neighbour is an error


@dataclass(frozen=True)
class VideoSampling:
    """Which frames of a video are taken; the names are LLaVA's.

    fps: frames per second of video that are taken (LLaVA's video_fps).
    frames_upbound: more frames than this become this many, evenly spaced from first to last; 0 for no bound.
    force_sample: take frames_upbound evenly spaced frames of every video, repeating frames of a shorter one.

    Of a video at a constant rate frames are counted, as LLaVA does; of one at a variable rate, as phones and screen
    recorders write them, a second is a second of the video: see choose_frames and choose_shown.

    Raises LlavaError for values that cannot be meant.
    """

    fps: float = 1.0
    frames_upbound: int = 32
    force_sample: bool = False

    def __post_init__(self) -> None:
        if not (self.fps > 0 and math.isfinite(self.fps)):
            raise LlavaError(f"video fps must be a positive number, found {self.fps}")
        if self.frames_upbound < 0:
            raise LlavaError(f"video frames_upbound must be at least 0 (no bound), found {self.frames_upbound}")
        if self.force_sample and self.frames_upbound == 0:
            raise LlavaError("video force_sample takes frames_upbound frames, but frames_upbound is 0")


EVERY_SECOND = VideoSampling()


@dataclass(frozen=True)
class VideoTimes:
    """The second at which each of the chosen frames is shown, and how many seconds the video lasts."""

    times: tuple[float, ...]
    duration: float


@dataclass(frozen=True)
class Video(VideoTimes):
    """The chosen frames, RGB and all of one size, and their times."""

    frames: tuple[Image.Image, ...]


def choose_frames(num_frames: int, average_fps: float, sampling: VideoSampling) -> list[int]:
    """Indices, ascending, of the frames taken from a video of `num_frames` frames.

    Every round(average_fps / fps)-th frame, at least every one. Where these are too many, or under force_sample,
    frames_upbound indices from 0 to num_frames - 1, evenly spaced and rounded down.
    Raises DataError for a video without frames or frame rate.
    """
    if num_frames < 1 or not (average_fps > 0 and math.isfinite(average_fps)):
        raise DataError(f"needs frames and a frame rate, found {num_frames} frames at {average_fps} per second")
    stride = max(round(average_fps / sampling.fps), 1)
    chosen = range(0, num_frames, stride)
    bound = sampling.frames_upbound
    if bound > 0 and (len(chosen) > bound or sampling.force_sample):
        return np.linspace(0, num_frames - 1, bound, dtype=int).tolist()
    return list(chosen)


def choose_shown(begins: np.ndarray, end: float, sampling: VideoSampling) -> list[int]:
    """Indices, ascending, of the frames taken from a video of a variable rate.

    The frames on screen at second 0, 1 / fps, 2 / fps, ..., each once. Where these are too many, or under force_sample,
    those at frames_upbound times, evenly spaced from the first frame's to the last one's; a video of no more frames is
    taken whole, its frames repeated as choose_frames repeats them.

    Args:
        begins: The second at which each frame appears, ascending.
        end: The second at which the last one goes.
        sampling: Which are taken.
    """
    # Of each frame, the first of the seconds 0, 1 / fps, ..., counted, at which it or a later one is on screen.
    ticks = np.ceil((np.append(begins, end) - begins[0] - CLOSE) * sampling.fps)
    chosen = np.flatnonzero(np.append(ticks[1:-1], max(ticks[-1], 1)) > ticks[:-1])
    bound = sampling.frames_upbound
    if bound > 0 and (len(chosen) > bound or sampling.force_sample):
        if len(begins) <= bound:
            chosen = np.linspace(0, len(begins) - 1, bound, dtype=int)
        else:
            chosen = np.searchsorted(begins, np.linspace(begins[0], begins[-1], bound) + CLOSE, side="right") - 1
    return chosen.tolist()


def _is_constant(begins: np.ndarray) -> bool:
    """Whether no frame lasts as long as one and a half of the others do, or half of one."""
    gaps = np.diff(begins)
    mean = gaps.mean() if len(gaps) else 0.0
    return bool((np.abs(gaps - mean) <= mean / 2).all())


def read_video(path: str | os.PathLike, sampling: VideoSampling, begin: float = 0.0, end: float | None = None) -> Video:
    """Decodes the chosen frames.

    begin, end: seconds; frames are chosen between them, as if nothing else was there. None: the end of the video.
    Raises DataError with one line that names the file when it is missing, a folder, no video, or cut off or damaged
    where its container tells or a chosen frame needs the lost part. LlavaError when decord is not installed.
    """
    reader, chosen, times = _open(path, sampling, begin, end)
    try:
        pixels = _pixels(reader, chosen)
    except _decoding_errors() as error:
        raise _kind(error)(f"video {path} cannot be decoded: {_reason(error)}") from None
    return Video(times.times, times.duration, tuple(Image.fromarray(frame) for frame in pixels))


def _pixels(reader: Any, chosen: list[int]) -> np.ndarray:
    """(frames, H, W, 3).

    Rows of 48 or 96 pixels are stored with so much padding that decord takes it for a fourth channel, which get_batch
    refuses: there frames are read one by one and the padding is cut off.
    """
    try:
        return reader.get_batch(chosen).asnumpy()
    except _decoding_errors():
        height, width, channels = reader[chosen[0]].shape
        if channels == 3:
            raise
    rows = np.stack([reader[index].asnumpy() for index in chosen]).reshape(len(chosen), height, width * channels)
    return np.ascontiguousarray(rows[:, :, : 3 * width]).reshape(len(chosen), height, width, 3)


def read_evenly(path: str | os.PathLike, num_frames: int | None = None, fps: float | None = None) -> list[Image.Image]:
    """The frames that transformers' video processors take: the first of each of num_frames equal parts.

    fps: In place of num_frames; as many as that rate makes of the video, at least one. Without both, every frame.
    Raises what read_video raises, and DataError for more frames than there are.
    """
    reader = _reader(path)
    total = len(reader)
    if num_frames is None:
        num_frames = total if fps is None else max(1, int(total / reader.get_avg_fps() * fps))
    try:
        pixels = _pixels(reader, spaced(total, num_frames, f"video {path}"))
    except _decoding_errors() as error:
        raise _kind(error)(f"video {path} cannot be decoded: {_reason(error)}") from None
    return [Image.fromarray(frame) for frame in pixels]


def spaced(total: int, num_frames: int, name: str) -> list[int]:
    """Of `total` frames, the first of each of num_frames equal parts; DataError for more than there are, with name."""
    if num_frames > total:
        raise DataError(f"{name} has {total} frames, fewer than num_frames={num_frames}")
    return [index * total // num_frames for index in range(num_frames)]


def probe_video(path: str | os.PathLike, sampling: VideoSampling) -> VideoTimes:
    """The times of the frames that read_video would return; reads the file's packets but decodes none.

    Raises what read_video raises, save for frames that turn out damaged when they are decoded.
    """
    return _open(path, sampling)[2]


def time_instruction(video: VideoTimes) -> str:
    """A sentence that tells a language model when the frames were taken."""
    times = ", ".join(f"{time:.2f}" for time in video.times)
    return f"This is a video of {video.duration:.2f} seconds, seen as {len(video.times)} frames at {times} seconds."


def _open(
    path: str | os.PathLike, sampling: VideoSampling, begin: float = 0.0, end: float | None = None
) -> tuple[Any, list[int], VideoTimes]:
    """decord's reader, the chosen indices, and their times, counted from the first frame, as the container has them.

    The video lasts until its last frame goes.
    """
    reader = _reader(path)
    try:
        return reader, *_chosen(reader, sampling, begin, end)
    except DataError as error:
        raise DataError(f"video {path} {error}") from None


def _reader(path: str | os.PathLike) -> Any:
    """decord's."""
    decord = _import_decord()
    try:
        check_readable(path)
    except FileNotFoundError:
        raise MissingFileError(f"video {path} does not exist") from None
    except IsADirectoryError:
        raise DataError(f"video {path} is a folder") from None
    except OSError as error:
        kind = PassingReadError if error.errno in PASSING else DataError
        raise kind(f"video {path} cannot be read: {error.strerror}") from None
    uri = os.path.abspath(path)  # a relative name with a colon would be read as a protocol
    try:
        return decord.VideoReader(uri, num_threads=1, fault_tol=NO_SUBSTITUTES)
    except _decoding_errors() as error:
        raise _kind(error)(f"{path} is not a whole video that decord can read: {_reason(error)}") from None


def _chosen(reader: Any, sampling: VideoSampling, begin: float, end: float | None) -> tuple[list[int], VideoTimes]:
    fps, spans = reader.get_avg_fps(), reader.get_frame_timestamp(list(range(len(reader))))
    begins, duration = spans[:, 0].astype(np.float64), float(spans[-1, 1])
    is_constant = _is_constant(begins)

    def index_at(second: float) -> int:
        return round(second * fps) if is_constant else int(np.searchsorted(begins, second - CLOSE))

    first = index_at(begin) if begin else 0
    last = min(index_at(end), len(reader)) if end is not None else len(reader)
    if (begin or end is not None) and last <= first:
        raise DataError(f"has {len(reader)} frames at {fps:g} per second, none from second {begin} to {end}")
    if is_constant:
        chosen = choose_frames(last - first, fps, sampling)
    else:
        gone = float(np.append(begins, duration)[last])
        chosen = choose_shown(begins[first:last], gone if end is None else min(gone, end), sampling)
    chosen = [first + index for index in chosen]
    return chosen, VideoTimes(tuple(spans[chosen, 0].tolist()), duration)


def _import_decord() -> Any:
    try:
        import decord
    except ImportError:
        raise LlavaError("videos need decord2: pip install 'llava-ov-manager[video]'") from None
    decord.logging.set_level(decord.logging.QUIET)  # ffmpeg's warnings; what matters is raised
    return decord


def _decoding_errors() -> tuple[type[Exception], ...]:
    """What decord raises on broken files; AssertionError stands for a video of 0 frames."""
    decord = _import_decord()
    return decord.DECORDError, decord.DECORDLimitReachedError, RuntimeError, AssertionError


def _kind(error: Exception) -> type[DataError]:
    """By decord's message, in which ffmpeg tells the system's error; the number is not handed on."""
    return PassingReadError if any(os.strerror(number) in str(error) for number in PASSING) else DataError


def _reason(error: Exception) -> str:
    """decord's message in one line of readable length, without the time and the place in its source."""
    message = " ".join(str(error).split()).split(".cc:")[-1]
    return message.split(": ", 1)[-1].strip(" .")[:160]
