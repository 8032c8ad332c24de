"""Samples of a mixture as model inputs, one at a time."""

import logging
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from torch.utils.data import Dataset

from llava.anyres import ImageLayout, VideoLayout
from llava.bounds import check_choice
from llava.constants import IGNORE_INDEX, VIDEO_TOKEN
from llava.data.conversation import LabelRule, Template, template_turns
from llava.data.image_folder import ImageFolder
from llava.data.images import open_image
from llava.data.inspect import Fault, Inspection
from llava.data.notes import Note
from llava.data.over_long import Encoding, OnOverLong, describe_too_long, fit_sample, most_tokens
from llava.data.processor import LlavaOVManagerProcessor
from llava.data.ragged import Ragged
from llava.data.record_store import TextFacts, is_multimodal
from llava.data.sample_sizes import SampleSizes, VisualCounts
from llava.data.schema import OnBadSample, Sample, Turn
from llava.data.video import EVERY_SECOND, Video, VideoSampling, VideoTimes, read_video, time_instruction
from llava.errors import DataError
from llava.files import patiently
from llava.printable import one_line

logger = logging.getLogger(__name__)
BYTES_PER_TOKEN = 4  # of English in Qwen2's tokenizer, to estimate lengths without tokenizing everything
BYTES_PER_PLACE = len(VIDEO_TOKEN)  # of the text that stands for an image or a video
TOKENS_PER_TURN = 40  # upper bound of what a template adds to a turn, the system message included
BYTES_PER_VIDEO, BYTES_PER_FRAME = 120, 20  # upper bounds of time_instruction


@dataclass(frozen=True)
class Origin:
    """What an item was made of, for messages and counts.

    name: of the sample. skipped, shortened: whether it was left out, or too long and changed. id: the sample's.
    fault: why it cannot be used, where the run is to end for it.
    """

    name: str
    skipped: bool = False
    shortened: bool = False
    id: str = ""
    fault: str | None = None

    def __str__(self) -> str:
        return self.name


class SupervisedDataset(Dataset):
    """Opens a sample's images and videos and encodes it.

    Args:
        samples, processor, image_folder: what to encode, with what, and where images and videos lie.
        template, label_rule, max_length, on_over_long, positions: see LlavaOVManagerProcessor.encode_sample.
        on_bad_sample: `error` raises DataError; `skip` logs it and yields a sample without any supervised token, so
            that batches keep their size and nothing is trained on in its place.
        skip_ids: of samples on which nothing is trained, without a look at them.
        notes_faults: instead of raising DataError, yields such a sample whose Origin has the fault, so that all ranks
            of a run can end together.
        video_sampling: which frames of a video are taken.
        time_instruction: tell the model, behind each video, when its frames were taken.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        processor: LlavaOVManagerProcessor,
        *,
        image_folder: str | Path | ImageFolder = ".",
        template: Template = "qwen_1_5",
        label_rule: LabelRule = "answers",
        max_length: int = 16384,
        on_over_long: OnOverLong = "error",
        positions: int | None = None,
        on_bad_sample: OnBadSample = "error",
        skip_ids: Collection[str] = (),
        notes_faults: bool = False,
        video_sampling: VideoSampling = EVERY_SECOND,
        time_instruction: bool = False,
    ):
        check_choice("on_bad_sample", on_bad_sample, OnBadSample)
        check_choice("on_over_long", on_over_long, OnOverLong)
        self.samples = samples
        self.processor = processor
        self.image_folder = ImageFolder.of(image_folder)
        self.encoding: Encoding = {
            "template": template,
            "label_rule": label_rule,
            "max_length": max_length,
            "on_over_long": on_over_long,
            "positions": positions,
        }
        self.on_bad_sample = on_bad_sample
        self.skip_ids = frozenset(skip_ids)
        self.notes_faults = notes_faults
        self.video_sampling = video_sampling
        self.time_instruction = time_instruction

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int | None) -> dict:
        """See LlavaOVManagerProcessor.encode_sample; `sample` replaces `shortened`, the item's Origin.

        None gives a sample without any supervised token, see LengthGroupedSampler.
        """
        if index is None:
            return self._ignored(Origin("no sample, fills the last step"))
        try:
            sample = self.samples[index]
        except DataError as error:  # of the data file
            if not self.notes_faults:
                raise
            return self._ignored(Origin(f"sample {index}", fault=str(error)))
        if sample.id in self.skip_ids:
            return self._ignored(Origin(str(sample), skipped=True, id=sample.id))
        try:
            encoded = self._encode(sample)
        except DataError as error:
            if self.on_bad_sample == "skip":
                logger.warning("skipped: %s", error)
                return self._ignored(Origin(str(sample), skipped=True, id=sample.id))
            if self.notes_faults:
                return self._ignored(Origin(str(sample), id=sample.id, fault=str(error)))
            raise
        origin = Origin(str(sample), shortened=encoded.pop("shortened"), id=sample.id)
        return {**encoded, "sample": origin}

    def _ignored(self, origin: Origin) -> dict:
        """A sample on which nothing is trained."""
        token = self.processor.tokenizer.pad_token_id
        return {"input_ids": [token], "labels": [IGNORE_INDEX], "num_images": 0, "num_videos": 0, "sample": origin}

    def _encode(self, sample: Sample) -> dict:
        if sample.fault is not None:
            raise DataError(f"{sample}: {sample.fault}")
        images, videos = self._open(sample)
        frames = [video.frames for video in videos]
        return self.processor.encode_sample(self._timed(sample, videos), images, frames, **self.encoding)

    def _open(self, sample: Sample) -> tuple[list, list[Video]]:
        try:
            images = [patiently(open_image, self.image_folder.file(image)) for image in sample.images]
            videos = (self.image_folder.file(video) for video in sample.videos)
            return images, [patiently(read_video, video, self.video_sampling) for video in videos]
        except DataError as error:
            raise DataError(f"{sample}: {one_line(str(error))}") from None

    def _timed(self, sample: Sample, videos: Sequence[VideoTimes]) -> Sample:
        """The sample with its videos' times in the text, where they are asked for."""
        if not self.time_instruction or sum(turn.text.count(VIDEO_TOKEN) for turn in sample.turns) != len(videos):
            return sample  # a wrong number of placeholders is found when the turns are encoded
        pending = iter(videos)

        def instruct(placeholder: re.Match) -> str:
            return f"{VIDEO_TOKEN}\n{time_instruction(next(pending))}\n"

        turns = (Turn(turn.role, re.sub(f"{VIDEO_TOKEN}\n?", instruct, turn.text)) for turn in sample.turns)
        return replace(sample, turns=tuple(turns))

    @property
    def is_multimodal(self) -> np.ndarray:
        """Whether each sample has images or videos, bool (N,)."""
        return is_multimodal(self.samples)

    def over_long(self, inspection: Inspection) -> tuple[list[str], list[str]]:
        """Faults and notes, one line for each sample of more than max_length tokens; see too_long."""
        faults: list[str] = []
        notes: list[str] = []
        for sample, outcome in self.too_long_samples(inspection, self.sizes(inspection)):
            (faults if isinstance(outcome, Fault) else notes).append(f"{sample}: {outcome.message}")
        return faults, notes

    def too_long_samples(self, inspection: Inspection, sizes: SampleSizes) -> Iterator[tuple[Sample, Fault | Note]]:
        """Each sample of more than max_length tokens that is not in skip_ids, and what becomes of it.

        sizes: what `sizes` gives for the inspection.
        """
        for number in self._maybe_too_long(inspection, sizes):
            sample = self.samples[number]
            if sample.id not in self.skip_ids:
                outcome = self.too_long(sample, inspection.image_sizes[number], inspection.videos[number])
                if outcome is not None:
                    yield sample, outcome

    def _maybe_too_long(self, inspection: Inspection, sizes: SampleSizes) -> Iterator[int]:
        """The numbers of all samples that could be, by what their bytes can be at most."""
        frames = inspection.frames_table()
        num_frames = frames.sums(frames.values) if self.time_instruction else None
        limit = most_tokens(self.encoding["max_length"], self.encoding["positions"])
        for place, facts in TextFacts.blocks(self.samples):
            most = np.asarray(sizes.visual_tokens)[place] + facts.text + TOKENS_PER_TURN * (facts.turns + 1)
            if num_frames is not None:
                most += BYTES_PER_VIDEO * facts.videos + BYTES_PER_FRAME * num_frames[place]
            yield from (np.flatnonzero(most > limit) + place.start).tolist()

    def too_long(
        self, stored: Sample, image_sizes: list[tuple[int, int]], videos: list[VideoTimes]
    ) -> Fault | Note | None:
        """What becomes of a sample of more than max_length tokens: a fault, or a note where it can be shortened.

        image_sizes, videos: as an inspection found them. None for a sample that is short enough, and for one that is
        unusable whatever its length. With on_over_long `error` each is a fault, else one that loses every answer.
        A token is at least one byte of text, so that only samples that could be too long are tokenized.
        """
        given, template = (self.encoding["max_length"], self.encoding["positions"]), self.encoding["template"]
        limit = most_tokens(*given)
        if (len(image_sizes), len(videos)) != (len(stored.images), len(stored.videos)):
            return None
        sample, frames = self._timed(stored, videos), [len(video.times) for video in videos]
        text = sum(len(turn.text.encode()) + TOKENS_PER_TURN for turn in sample.turns) + TOKENS_PER_TURN
        if self._visual_tokens(image_sizes, frames) + text <= limit:
            return None
        try:
            template_turns(sample.turns, template, len(image_sizes), len(frames))
        except DataError:
            return None
        try:
            fitted = fit_sample(self.processor, sample.turns, image_sizes, frames, **self.encoding)
        except DataError as error:
            return Fault("over_long", str(error))
        if fitted.tokens <= limit:
            return None
        kept = len(fitted.input_ids)
        return Note("shortened", f"{describe_too_long(fitted.tokens, *given)}: shortened to {kept}")

    def sizes(self, inspection: Inspection) -> SampleSizes:
        """Crops and visual tokens as `inspection`'s image sizes and frames call for; text is estimated by its bytes.

        So is the question about what a sample shows: as long as the sample's turns that are no answers, in the mean.
        """
        crops, visual_tokens = (np.zeros(len(self.samples), dtype=np.int32) for _ in range(2))
        shown = np.zeros(len(self.samples), dtype=np.uint16)
        pairs, end = np.zeros(len(self.samples), dtype=np.int64), 0
        for images, frames in zip(inspection.sizes_table().blocks(), inspection.frames_table().blocks()):
            place = slice(end, end + len(images))
            crops[place], visual_tokens[place], pairs[place], shown[place] = self._visual(images, frames)
            end = place.stop
        text = self.text_sizes()
        tokens = visual_tokens + text.tokens
        return SampleSizes(crops, tokens, text.supervised, visual_tokens, pairs, shown, text.question)

    def text_sizes(self) -> SampleSizes:
        """As `sizes`, where no image and no video can be read."""
        tokens, supervised, none = (np.zeros(len(self.samples), dtype=np.int32) for _ in range(3))
        question = np.zeros(len(self.samples), dtype=np.uint16)
        for place, facts in TextFacts.blocks(self.samples):
            tokens[place] = facts.text // BYTES_PER_TOKEN
            supervised[place] = facts.answers // BYTES_PER_TOKEN
            if self.encoding["template"] != "plain":  # which asks nothing
                question[place] = _question_tokens(facts).clip(max=np.iinfo(question.dtype).max)
        return SampleSizes(none, tokens, supervised, none, none, none, question)

    def _visual(self, images: Ragged, frames: Ragged) -> VisualCounts:
        """images: (width, height) of each. frames: how many of each video."""
        image_processor = self.processor.image_processor
        several = np.repeat(images.counts > 1, images.counts)
        crops, tokens = image_processor.count_layouts(images.values, several)
        frame_tokens = frames.values
        if len(frames.values):  # else the model may be one that takes no videos
            frame_tokens = frames.values * (image_processor.video_layout(1).num_tokens - 1) + 1
        return VisualCounts(
            images.sums(crops) + frames.sums(frames.values),
            images.sums(tokens) + frames.sums(frame_tokens),
            images.sums(tokens**2) + frames.sums(frame_tokens**2),
            images.counts + frames.counts,
        )

    def _visual_tokens(self, sizes: list[tuple[int, int]], frames: list[int]) -> int:
        return sum(layout.num_tokens for layout in self._layouts(sizes, frames))

    def _layouts(self, sizes: list[tuple[int, int]], frames: list[int]) -> list[ImageLayout | VideoLayout]:
        image_processor = self.processor.image_processor
        images = [image_processor.layout(size, len(sizes) > 1) for size in sizes]
        return images + [image_processor.video_layout(number) for number in frames]


def _question_tokens(facts: TextFacts) -> np.ndarray:
    """Of one question of each sample, the mean over its turns that are no answers; 0 where they only show something."""
    asking = facts.text - facts.answers - BYTES_PER_PLACE * (facts.images + facts.videos)
    return asking.clip(0) // ((facts.turns + 1) // 2).clip(1) // BYTES_PER_TOKEN
