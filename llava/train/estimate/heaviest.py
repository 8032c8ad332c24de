"""The micro-batch of an epoch that takes the most memory, by what memory.py estimates."""

from dataclasses import dataclass

import numpy as np

from llava.anyres import image_layout
from llava.data.sample_sizes import SampleSizes
from llava.data.sampler import FILL, LengthGroupedSampler
from llava.mllm import LlavaOVManagerConfig
from llava.sizes import in_bytes
from llava.train.estimate.memory import Activations, Work


@dataclass(frozen=True)
class Heaviest:
    """A micro-batch: its samples, None for one that fills it up; padded tokens, crops, supervised tokens; bytes."""

    indices: list[int | None]
    tokens: int
    crops: int
    supervised: int
    activations: float

    def __str__(self) -> str:
        return (
            f"heaviest    micro-batch of the epoch: {self.tokens:,} tokens, {self.crops} crops, {self.supervised:,} "
            f"supervised, about {in_bytes(self.activations)} of activations"
        )


def heaviest(sampler: LengthGroupedSampler, sizes: SampleSizes, packing: bool, activations: Activations) -> Heaviest:
    """The heaviest of all ranks' micro-batches in the sampler's epoch; the first one where several are.

    Args:
        sampler: of the training.
        sizes: of all samples.
        packing: of the samples of a micro-batch, which are padded without.
        activations: of the recipe.
    """
    found = (_heaviest(batches, sizes, packing, activations) for batches in sampler.blocks())
    return max(found, key=lambda one: one.activations)  # the first of equals


def _heaviest(batches: np.ndarray, sizes: SampleSizes, packing: bool, activations: Activations) -> Heaviest:
    """The heaviest of some micro-batches (B, batch_size)."""
    crops, tokens, supervised = (
        np.where(batches == FILL, 0, values[batches]).astype(np.int64)
        for values in (sizes.crops, sizes.tokens, sizes.supervised)
    )
    padded = tokens.sum(1) if packing else tokens.max(1) * batches.shape[1]
    crops, supervised = crops.sum(1), supervised.sum(1)
    taken = activations(Work(1, padded, crops, supervised))
    first = int(np.argmax(taken))
    return Heaviest(
        indices=[None if index == FILL else index for index in batches[first].tolist()],
        tokens=int(padded[first]),
        crops=int(crops[first]),
        supervised=int(supervised[first]),
        activations=float(taken[first]),
    )


def heaviest_possible(
    batch_size: int, max_length: int, text_tokens: int, config: LlavaOVManagerConfig, activations: Activations
) -> str:
    """What the longest texts and the largest images would take, as a line, where no data is looked at.

    Args:
        batch_size: samples of a micro-batch.
        max_length: most tokens of a sample.
        text_tokens: of the text beside a large image.
        config: of the model, with its tiling.
        activations: of the recipe.
    """
    tile = config.vision_config.image_size
    layouts = [
        image_layout(*size, config.tiling, tile=tile, side=config.patches_per_side, several_images=False)
        for size in config.tiling.pinpoints or [(tile, tile)]
    ]
    layout = max(layouts, key=lambda layout: layout.num_crops)
    texts = Work(batch_size, max_length, 0, max_length)
    images = Work(batch_size, min(layout.num_tokens + text_tokens, max_length), layout.num_crops, text_tokens)
    return (
        f"heaviest    about {in_bytes(activations(texts))} of activations for {batch_size} texts of {max_length:,} "
        f"tokens, all supervised; {in_bytes(activations(images))} for {batch_size} images of {layout.num_crops} crops; "
        "a start tells it of the data"
    )
