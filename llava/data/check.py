"""Finds what is wrong with a mixture before training starts."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from llava.data.conversation import check_placeholders
from llava.data.images import image_size
from llava.data.schema import Sample
from llava.data.video import EVERY_SECOND, VideoSampling, VideoTimes, probe_video
from llava.errors import DataError

SHOWN_FAULTS = 20


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
) -> Inspection:
    """Reads the header of every image and video and counts placeholders. Files cut off at their end are found.

    The work is file access, so threads serve; the result does not depend on `workers`.
    """
    with ThreadPoolExecutor(workers) as pool:
        results = list(pool.map(lambda sample: _inspect(sample, Path(image_folder), video_sampling), samples))
    return Inspection(
        [sizes for sizes, _, _ in results],
        [videos for _, videos, _ in results],
        [fault for _, _, fault in results if fault],
    )


def _inspect(sample: Sample, image_folder: Path, video_sampling: VideoSampling) -> tuple[list, list, str | None]:
    try:
        check_placeholders(sample.turns, len(sample.images), len(sample.videos))
        if not any(turn.role == "gpt" and turn.text.strip() for turn in sample.turns):
            raise DataError("the conversation has no answer to learn from")
        sizes = [image_size(image_folder / image) for image in sample.images]
        return sizes, [probe_video(image_folder / video, video_sampling) for video in sample.videos], None
    except DataError as error:
        return [], [], f"{sample}: {error}"
