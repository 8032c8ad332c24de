"""Finds what is wrong with a mixture before training starts."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from llava.constants import IMAGE_TOKEN
from llava.data.images import image_size
from llava.data.schema import Sample
from llava.errors import DataError

SHOWN_FAULTS = 20


@dataclass(frozen=True)
class Inspection:
    """image_sizes: per sample, the (width, height) of its images. faults: one line for each sample that is unusable."""

    image_sizes: list[list[tuple[int, int]]]
    faults: list[str]

    def raise_faults(self) -> None:
        """DataError with all faults (the first 20 and their number) if there is any."""
        if self.faults:
            shown = "\n".join(f"  {fault}" for fault in self.faults[:SHOWN_FAULTS])
            more = len(self.faults) - SHOWN_FAULTS
            rest = f"\n  and {more} more" if more > 0 else ""
            raise DataError(f"{len(self.faults)} of {len(self.image_sizes)} samples are unusable:\n{shown}{rest}")


def inspect_samples(samples: list[Sample], image_folder: str | Path, workers: int = 16) -> Inspection:
    """Reads every image's header and counts placeholders. Images cut off at their end are found without decoding.

    The work is file access, so threads serve; the result does not depend on `workers`.
    """
    with ThreadPoolExecutor(workers) as pool:
        results = list(pool.map(lambda sample: _inspect(sample, Path(image_folder)), samples))
    return Inspection([sizes for sizes, _ in results], [fault for _, fault in results if fault])


def _inspect(sample: Sample, image_folder: Path) -> tuple[list[tuple[int, int]], str | None]:
    placeholders = sum(turn.text.count(IMAGE_TOKEN) for turn in sample.turns)
    if sample.images and placeholders != len(sample.images):
        return [], f"{sample}: found {placeholders} {IMAGE_TOKEN} placeholders but {len(sample.images)} images"
    if not any(turn.role == "gpt" and turn.text.strip() for turn in sample.turns):
        return [], f"{sample}: the conversation has no answer to learn from"
    try:
        return [image_size(image_folder / image) for image in sample.images], None
    except DataError as error:
        return [], f"{sample}: {error}"
