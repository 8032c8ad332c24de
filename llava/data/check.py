"""What is wrong with a sample, found without training on it: of one sample, and of all samples of a stage."""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from llava.data.conversation import check_placeholders
from llava.data.images import image_size, open_image
from llava.data.schema import Sample
from llava.data.video import EVERY_SECOND, VideoSampling, VideoTimes, probe_video, read_video
from llava.errors import DataError, MissingFileError, OversizedImageError

SHOWN_FAULTS = 20
KINDS = {
    "record": "not a record that can be read",
    "placeholder": "as many images or videos as the text has places for",
    "no_answer": "no answer to learn from",
    "outside": "a path that leaves the image folder",
    "missing": "an image or video that does not exist",
    "undecodable": "an image or video that cannot be decoded",
    "bomb": "an image of suspiciously many pixels",
    "over_long": "more tokens than max_length",
    "duplicate_id": "an id that an earlier row has",
}


class Fault(NamedTuple):
    """One thing that is wrong with a sample. kind: a key of KINDS."""

    kind: str
    message: str


class InspectedSample(NamedTuple):
    """The (width, height) of a sample's images, what is known of its videos, and what is wrong with it.

    Sizes and videos are empty where there is a fault.
    """

    image_sizes: list[tuple[int, int]]
    videos: list[VideoTimes]
    faults: list[Fault]


@dataclass(frozen=True)
class Inspection:
    """What is known of each sample without decoding it.

    image_sizes: the (width, height) of its images. videos: what is known of its videos' frames. Both are empty where
    the sample is unusable. faults: one line for each sample that is.
    """

    image_sizes: list[list[tuple[int, int]]]
    videos: list[list[VideoTimes]]
    faults: list[str]

    def raise_faults(self) -> None:
        """DataError with all faults (the first 20 and their number) if there is any."""
        if self.faults:
            shown = "\n".join(f"  {fault}" for fault in self.faults[:SHOWN_FAULTS])
            more = len(self.faults) - SHOWN_FAULTS
            rest = f"\n  and {more} more" if more > 0 else ""
            raise DataError(f"{len(self.faults)} of {len(self.image_sizes)} samples are unusable:\n{shown}{rest}")


def inspect_samples(
    samples: list[Sample],
    image_folder: str | Path,
    video_sampling: VideoSampling = EVERY_SECOND,
    workers: int = 16,
    decode: bool = False,
) -> Inspection:
    """Reads the header of every image and video and counts placeholders. Files cut off at their end are found.

    decode: see inspect_sample. The work is file access, so threads serve; the result does not depend on `workers`.
    """
    folder = Path(image_folder)
    with ThreadPoolExecutor(workers) as pool:
        results = list(pool.map(lambda sample: inspect_sample(sample, folder, video_sampling, decode=decode), samples))
    return Inspection(
        [result.image_sizes for result in results],
        [result.videos for result in results],
        [
            f"{sample}: {'; '.join(fault.message for fault in result.faults)}"
            for sample, result in zip(samples, results)
            if result.faults
        ],
    )


def inspect_sample(
    sample: Sample,
    image_folder: Path,
    video_sampling: VideoSampling = EVERY_SECOND,
    *,
    decode: bool = False,
    confined: bool = False,
) -> InspectedSample:
    """Reads the headers of one sample's images and videos, or all of them, and finds all that is wrong.

    decode: decode every pixel and every chosen frame, instead of reading headers and, of images, the end.
    confined: a path that leaves the image folder is a fault; it is not opened then.
    """
    faults, sizes, videos = [], [], []
    try:
        check_placeholders(sample.turns, len(sample.images), len(sample.videos))
    except DataError as error:
        faults.append(Fault("placeholder", str(error)))
    if not any(turn.role == "gpt" and turn.text.strip() for turn in sample.turns):
        faults.append(Fault("no_answer", "the conversation has no answer to learn from"))

    def probe(paths: tuple[str, ...], read, found: list) -> None:
        for path in paths:
            reason = why_outside(path, image_folder) if confined else None
            if reason is not None:
                faults.append(Fault("outside", f"the path {path} {reason}"))
                continue
            try:
                found.append(read(image_folder / path))
            except DataError as error:
                faults.append(Fault(_kind(error), str(error)))

    probe(sample.images, (lambda path: open_image(path).size) if decode else image_size, sizes)
    probe(sample.videos, lambda path: (_decode_video if decode else probe_video)(path, video_sampling), videos)
    return InspectedSample([], [], faults) if faults else InspectedSample(sizes, videos, faults)


def why_outside(path: str, folder: Path) -> str | None:
    """Why a path does not lie inside the image folder; None when it does. Symbolic links are followed."""
    if os.path.isabs(path):
        return "is absolute, not relative to the image folder"
    if os.path.normpath(path).split(os.sep)[0] == os.pardir:
        return "climbs out of the image folder"
    root, parent, file = _real_folder(str(folder)), *os.path.split(os.path.join(folder, path))
    real = os.path.join(_real_folder(parent), file)
    if os.path.islink(real):
        real = os.path.realpath(real)
    if not os.path.join(real, "").startswith(os.path.join(root, "")):
        return f"leads to {real}, outside the image folder"
    return None


@lru_cache(maxsize=65536)
def _real_folder(folder: str) -> str:
    """The folder without symbolic links; asked for once, since thousands of images share a folder."""
    return os.path.realpath(folder)


def _decode_video(path: Path, video_sampling: VideoSampling) -> VideoTimes:
    video = read_video(path, video_sampling)
    return VideoTimes(video.times, video.duration)  # without the frames


def _kind(error: DataError) -> str:
    if isinstance(error, MissingFileError):
        return "missing"
    return "bomb" if isinstance(error, OversizedImageError) else "undecodable"
