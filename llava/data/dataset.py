"""Samples of a mixture as model inputs, one at a time."""

import logging
from pathlib import Path

from torch.utils.data import Dataset

from llava.constants import IGNORE_INDEX
from llava.data.check import Inspection
from llava.data.images import open_image
from llava.data.processor import LlavaOVManagerProcessor
from llava.data.schema import Sample
from llava.errors import DataError, LlavaError

logger = logging.getLogger(__name__)
ON_BAD_SAMPLE = ("error", "skip")
CHARACTERS_PER_TOKEN = 4  # of English in Qwen2's tokenizer, to estimate lengths without tokenizing everything


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
        self.skipped = 0

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict:
        """See LlavaOVManagerProcessor.encode_sample."""
        sample = self.samples[index]
        try:
            return self.processor.encode_sample(sample, self._open_images(sample), **self.encoding)
        except DataError as error:
            if self.on_bad_sample == "error":
                raise
            self.skipped += 1
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

    def lengths(self, inspection: Inspection | None = None) -> list[int]:
        """Tokens of each sample: visual tokens exact where `inspection` knows the image sizes, text estimated."""
        return [
            sum(len(turn.text) for turn in sample.turns) // CHARACTERS_PER_TOKEN
            + self._visual_tokens(sample, inspection.image_sizes[index] if inspection else None)
            for index, sample in enumerate(self.samples)
        ]

    def _visual_tokens(self, sample: Sample, sizes: list[tuple[int, int]] | None) -> int:
        crop = self.processor.image_processor.size
        sizes = sizes if sizes is not None else [(2 * crop, 2 * crop)] * len(sample.images)
        layouts = (self.processor.image_processor.layout(size, len(sizes) > 1) for size in sizes)
        return sum(layout.num_tokens for layout in layouts)
