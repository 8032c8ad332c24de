"""What is wrong with a sample, found without training on it: of one sample, and of all samples of a stage."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from llava.data.conversation import NO_ANSWER, is_answer
from llava.data.image_folder import ImageFolder
from llava.data.images import image_size, open_image
from llava.data.notes import NOTES, Note, has_places_and_answer, notes_of
from llava.data.ragged import Ragged
from llava.data.schema import Sample
from llava.data.video import EVERY_SECOND, VideoSampling, VideoTimes, probe_video, read_video
from llava.errors import (
    DataError,
    MissingFileError,
    NoAnswerError,
    OutsideError,
    OversizedImageError,
    PlaceholderError,
    TemplateError,
)
from llava.files import patiently
from llava.printable import one_line

SHOWN_FAULTS = 20
KINDS = {
    "record": "not a record that can be read",
    "placeholder": "not a place for each image and video, or a place where nothing can be shown",
    "template": "turns that the template does not take",
    "no_answer": "no answer to learn from",
    "outside": "a path that leaves the image folder",
    "missing": "an image or video that does not exist",
    "undecodable": "an image or video that cannot be read or decoded",
    "bomb": "an image of suspiciously many pixels",
    "over_long": "more tokens than max_length or the model's positions, or no answer left within them",
}
_KIND_OF_ERROR = {
    PlaceholderError: "placeholder",
    TemplateError: "template",
    NoAnswerError: "no_answer",
    OutsideError: "outside",
    MissingFileError: "missing",
    OversizedImageError: "bomb",
}


class Fault(NamedTuple):
    """One thing that is wrong with a sample. kind: a key of KINDS."""

    kind: str
    message: str


class InspectedSample(NamedTuple):
    """The (width, height) of a sample's images, what is known of its videos, what is wrong and what is odd with it.

    Sizes and videos are empty where a file cannot be read, and where the record has no answer or other than one place
    for each image and video.
    """

    image_sizes: list[tuple[int, int]]
    videos: list[VideoTimes]
    faults: list[Fault]
    notes: list[Note]


class SampleLines(NamedTuple):
    """What is told of a sample, by its id: a line why it is unusable, or None, and {kind of NOTES: a line}."""

    id: str
    fault: str | None
    notes: dict[str, str]


class VideosBySample(Protocol):
    """What is known of each sample's videos, see inspect_store. frames: how many are taken of each video."""

    frames: Ragged

    def __len__(self) -> int: ...

    def __getitem__(self, position: int) -> list[VideoTimes]: ...

    def __iter__(self) -> Iterator[list[VideoTimes]]: ...


@dataclass(frozen=True)
class Inspection:
    """What is known of each sample without decoding it.

    image_sizes: the (width, height) of its images. videos: what is known of its videos' frames. Both as in
    InspectedSample, or in arrays, see inspect_store. faults: one line for each sample that is unusable. notes: {kind of
    NOTES: one line for each sample that is odd so}. faulty: the ids of the samples that `faults` tells of.
    """

    image_sizes: Sequence[list[tuple[int, int]]] | Ragged
    videos: Sequence[list[VideoTimes]] | VideosBySample
    faults: list[str]
    notes: dict[str, list[str]] = field(default_factory=dict)
    faulty: list[str] = field(default_factory=list)

    def add(self, lines: SampleLines) -> None:
        """Adds what is told of one more sample."""
        if lines.fault is not None:
            self.faults.append(lines.fault)
            self.faulty.append(lines.id)
        for kind, line in lines.notes.items():
            self.notes.setdefault(kind, []).append(line)

    def sizes_table(self) -> Ragged:
        """The image sizes as arrays."""
        return self.image_sizes if isinstance(self.image_sizes, Ragged) else Ragged.of(self.image_sizes, 2)

    def frames_table(self) -> Ragged:
        """How many frames are taken of each sample's videos."""
        frames = getattr(self.videos, "frames", None)
        if frames is not None:
            return frames
        return Ragged.of([[len(video.times) for video in videos] for videos in self.videos], 0)

    def raise_faults(self, way_on: str = "") -> None:
        """DataError with all faults (the first 20 and their number) if there is any; way_on: a last line of it."""
        if self.faults:
            raise DataError(f"{self._listed()}{way_on}")

    def told(self) -> list[str]:
        """A line for what is unusable and for each kind of oddity: how many samples, and the first of them."""
        kinds = [("unusable", self.faults)] if self.faults else []
        kinds += [(NOTES[kind], lines) for kind, lines in self.notes.items()]
        total = len(self.image_sizes)
        return [f"note: {len(lines)} of {total} samples: {what}; first {lines[0]}" for what, lines in kinds]

    def _listed(self) -> str:
        shown = "\n".join(f"  {fault}" for fault in self.faults[:SHOWN_FAULTS])
        more = len(self.faults) - SHOWN_FAULTS
        rest = f"\n  and {more} more" if more > 0 else ""
        return f"{len(self.faults)} of {len(self.image_sizes)} samples are unusable:\n{shown}{rest}"


def inspect_samples(
    samples: Sequence[Sample],
    image_folder: str | Path | ImageFolder,
    video_sampling: VideoSampling = EVERY_SECOND,
    workers: int = 16,
    decode: bool = False,
    template: str = "qwen_1_5",
) -> Inspection:
    """Reads the header of every image and video and asks the template for the turns it takes, of every sample.

    Files cut off at their end are found. decode, template: see inspect_sample. The work is file access, so threads
    serve; the result does not depend on `workers`.
    """
    folder = ImageFolder.of(image_folder)

    def inspect(sample: Sample) -> InspectedSample:
        return inspect_sample(sample, folder, video_sampling, decode=decode, template=template)

    with ThreadPoolExecutor(workers) as pool:
        results = list(pool.map(inspect, samples))
    inspection = Inspection([result.image_sizes for result in results], [result.videos for result in results], [])
    for sample, result in zip(samples, results):
        inspection.add(lines_of(sample, result.faults, result.notes))
    return inspection


def lines_of(sample: Sample, faults: list[Fault], notes: list[Note]) -> SampleLines:
    """What is told of a sample of which this is wrong and odd."""
    messages: dict[str, list[str]] = {}
    for note in notes:
        messages.setdefault(note.kind, []).append(note.message)
    fault = f"{sample}: {'; '.join(fault.message for fault in faults)}" if faults else None
    return SampleLines(sample.id, fault, {kind: f"{sample}: {'; '.join(texts)}" for kind, texts in messages.items()})


def inspect_sample(
    sample: Sample,
    image_folder: str | Path | ImageFolder,
    video_sampling: VideoSampling = EVERY_SECOND,
    *,
    decode: bool = False,
    template: str = "qwen_1_5",
) -> InspectedSample:
    """Reads the headers of one sample's images and videos, or all of them, and finds all that is wrong.

    decode: decode every pixel and every chosen frame, instead of reading headers and, of images, the end.
    image_folder: a path that it does not let out of it is a fault, and is not opened.
    template: the prompt template that has to take its turns.
    """
    if sample.fault is not None:
        return InspectedSample([], [], [Fault("record", sample.fault)], [])
    folder = ImageFolder.of(image_folder)
    faults: list[Fault] = []
    notes: list[Note] = []
    sizes: list[tuple[int, int]] = []
    times: list[VideoTimes] = []
    try:
        notes = notes_of(sample, template)
    except DataError as error:
        faults.append(fault_of(error))
        if not any(map(is_answer, sample.turns)) and not isinstance(error, NoAnswerError):
            faults.append(Fault("no_answer", NO_ANSWER))

    def probe(paths: tuple[str, ...], read: Callable[[Path], Any], results: list) -> None:
        for path in paths:
            try:
                results.append(patiently(read, folder.file(path)))
            except DataError as error:
                faults.append(fault_of(error))

    probe(sample.images, (lambda path: open_image(path).size) if decode else image_size, sizes)
    probe(sample.videos, lambda path: (_decode_video if decode else probe_video)(path, video_sampling), times)
    if not has_places_and_answer(sample) or (len(sizes), len(times)) != (len(sample.images), len(sample.videos)):
        sizes, times = [], []
    return InspectedSample(sizes, times, faults, notes)


def _decode_video(path: Path, video_sampling: VideoSampling) -> VideoTimes:
    video = read_video(path, video_sampling)
    return VideoTimes(video.times, video.duration)  # without the frames


def fault_of(error: DataError) -> Fault:
    """What an error of reading a sample or a file is told as."""
    return Fault(_KIND_OF_ERROR.get(type(error), "undecodable"), one_line(str(error)))
