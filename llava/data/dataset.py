"""Samples of a mixture as model inputs, one at a time."""

import logging
import multiprocessing
from pathlib import Path

from torch.utils.data import Dataset

from llava.constants import IGNORE_INDEX
from llava.data.check import Inspection
from llava.data.images import open_image
from llava.data.processor import OVER_LONG, LlavaOVManagerProcessor
from llava.data.schema import Sample
from llava.errors import DataError, LlavaError

logger = logging.getLogger(__name__)
ON_BAD_SAMPLE = ("error", "skip")
BYTES_PER_TOKEN = 4  # of English in Qwen2's tokenizer, to estimate lengths without tokenizing everything
TOKENS_PER_TURN = 40  # upper bound of what a template adds to a turn, the system message included


class SupervisedDataset(Dataset):
    """Opens a sample's images and encodes it.

    Args:
        samples, processor, image_folder: what to encode, with what, and where the images lie.
        template, label_rule, max_length, on_over_long: see LlavaOVManagerProcessor.encode_sample.
        on_bad_sample: `error` raises DataError; `skip` logs it, counts it in `skipped` and yields a sample without any
            supervised token, so that batches keep their size and nothing is trained on in its place.
    """

    def __init__(
        self,
        samples: list[Sample],
        processor: LlavaOVManagerProcessor,
        *,
        image_folder: str | Path = ".",
        template: str = "qwen_1_5",
        label_rule: str = "answers",
        max_length: int = 16384,
        on_over_long: str = "error",
        on_bad_sample: str = "error",
    ):
        if on_bad_sample not in ON_BAD_SAMPLE:
            raise LlavaError(f"unknown on_bad_sample {on_bad_sample!r}; choose one of {', '.join(ON_BAD_SAMPLE)}")
        if on_over_long not in OVER_LONG:
            raise LlavaError(f"unknown on_over_long {on_over_long!r}; choose one of {', '.join(OVER_LONG)}")
        self.samples = samples
        self.processor = processor
        self.image_folder = Path(image_folder)
        self.encoding = {
            "template": template,
            "label_rule": label_rule,
            "max_length": max_length,
            "on_over_long": on_over_long,
        }
        self.on_bad_sample = on_bad_sample
        self._skipped = multiprocessing.Value("q", 0)

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def skipped(self) -> int:
        """Bad samples met so far, by all of this process's data loader workers."""
        return self._skipped.value

    def __getitem__(self, index: int) -> dict:
        """See LlavaOVManagerProcessor.encode_sample."""
        sample = self.samples[index]
        try:
            return self.processor.encode_sample(sample, self._open_images(sample), **self.encoding)
        except DataError as error:
            if self.on_bad_sample == "error":
                raise
            with self._skipped.get_lock():
                self._skipped.value += 1
            logger.warning("skipped: %s", error)
            token = self.processor.tokenizer.pad_token_id
            return {"input_ids": [token], "labels": [IGNORE_INDEX], "num_images": 0}

    def _open_images(self, sample: Sample) -> list:
        try:
            return [open_image(self.image_folder / image) for image in sample.images]
        except DataError as error:
            raise DataError(f"{sample}: {error}") from None

    @property
    def is_multimodal(self) -> list[bool]:
        """Whether each sample has images."""
        return [bool(sample.images) for sample in self.samples]

    def over_long(self, inspection: Inspection) -> list[str]:
        """One line for each sample that has more than max_length tokens.

        A token is at least one byte of text, so that only samples that could be too long are tokenized.
        """
        limit, faults = self.encoding["max_length"], []
        for sample, sizes in zip(self.samples, inspection.image_sizes):
            visual = self._visual_tokens(sample, sizes)
            text = sum(len(turn.text.encode()) + TOKENS_PER_TURN for turn in sample.turns) + TOKENS_PER_TURN
            if visual + text > limit and len(sizes) == len(sample.images):
                found = self.processor.count_tokens(sample, sizes, self.encoding["template"])
                if found > limit:
                    faults.append(f"{sample}: found {found} tokens but max_length is {limit}")
        return faults

    def lengths(self, inspection: Inspection | None = None) -> list[int]:
        """Tokens of each sample: visual tokens exact where `inspection` knows the image sizes, text estimated."""
        return [
            sum(len(turn.text.encode()) for turn in sample.turns) // BYTES_PER_TOKEN
            + self._visual_tokens(sample, inspection.image_sizes[index] if inspection else None)
            for index, sample in enumerate(self.samples)
        ]

    def _visual_tokens(self, sample: Sample, sizes: list[tuple[int, int]] | None) -> int:
        crop = self.processor.image_processor.size
        sizes = sizes if sizes is not None else [(2 * crop, 2 * crop)] * len(sample.images)
        layouts = (self.processor.image_processor.layout(size, len(sizes) > 1) for size in sizes)
        return sum(layout.num_tokens for layout in layouts)
