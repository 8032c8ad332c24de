"""The order of training: batches of one modality and similar cost, balanced over ranks."""

import math
from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

from llava.data.index import SCAN

FILL = -1  # in place of an index, for None


class LengthGroupedSampler(Sampler[int | None]):
    """Indices of one epoch, for all ranks, in the order batch by batch: rank 0's first, then rank 1's, and so on.

    The last optimizer step is filled up with None, for which SupervisedDataset has a sample that trains nothing. So
    every sample counts once in an epoch, however many ranks there are; accelerate would repeat some of them on several
    ranks and train on those twice.

    Args:
        costs: what each sample costs, in any unit; see llava.mllm.cost.
        is_multimodal: whether each sample has images or videos.
        batch_size, world_size, accumulation: samples a rank takes at once, ranks, micro-steps of an optimizer step.
        seed: with the epoch (set_epoch), all that the order depends on; see epoch_order.
    """

    def __init__(
        self,
        costs: Sequence[float],
        is_multimodal: Sequence[bool],
        *,
        batch_size: int,
        world_size: int = 1,
        accumulation: int = 1,
        seed: int = 0,
    ):
        self.costs = np.asarray(costs)
        self.is_multimodal = np.asarray(is_multimodal, dtype=bool)
        self.batch_size = batch_size
        self.world_size = world_size
        self.accumulation = accumulation
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Chooses the order: with the seed, the epoch alone decides it."""
        self.epoch = epoch

    def __len__(self) -> int:
        size = self.batch_size * self.world_size * self.accumulation
        return math.ceil(len(self.costs) / size) * size

    def __iter__(self) -> Iterator[int | None]:
        for batches in self.blocks():
            for index in batches.reshape(-1).tolist():
                yield None if index == FILL else index

    def blocks(self) -> Iterator[np.ndarray]:
        """The order as arrays of micro-batches (B, batch_size), about SCAN indices each, FILL in place of None."""
        order = epoch_order(
            self.costs,
            self.is_multimodal,
            batch_size=self.batch_size,
            world_size=self.world_size,
            accumulation=self.accumulation,
            seed=self.seed,
            epoch=self.epoch,
        )
        length = max(SCAN // self.batch_size, 1) * self.batch_size
        for begin in range(0, len(self), length):
            block = order[begin : begin + length]
            fill = min(length, len(self) - begin) - len(block)
            yield np.concatenate([block, np.full(fill, FILL, block.dtype)]).reshape(-1, self.batch_size)


def epoch_order(
    costs: np.ndarray,
    is_multimodal: np.ndarray,
    *,
    batch_size: int,
    world_size: int,
    accumulation: int,
    seed: int,
    epoch: int,
) -> np.ndarray:
    """A permutation of all indices (N,), a pure function of its arguments (4 million in about two seconds).

    Text-only and multimodal samples are shuffled apart and cut into megabatches of one optimizer step (world_size *
    accumulation * batch_size). Within one, samples are sorted by cost and cut into micro-steps, whose ranks so have
    about equal costs: every micro-step ends in a collective and lasts as long as its slowest rank. Micro-steps and
    megabatches are shuffled; what does not fill a megabatch comes last. Which samples share an optimizer step depends
    on its size alone, not on how it is cut into ranks and micro-steps.
    """
    # Bits and a stable sort are the same in every version of numpy; its own shuffles are not.
    bits = np.random.PCG64([seed, epoch])
    size = batch_size * world_size * accumulation
    kind = np.int32 if len(costs) <= np.iinfo(np.int32).max else np.int64  # half of the memory
    full, rest = [], []
    for modality in (True, False):
        indices = np.flatnonzero(is_multimodal == modality).astype(kind)
        indices = indices[_shuffle(bits, len(indices))]
        complete = len(indices) // size * size
        full.append(indices[:complete].reshape(-1, size))
        rest.append(indices[complete:])
    megabatches = np.concatenate(full)
    megabatches = megabatches[_shuffle(bits, len(megabatches))]
    for begin in range(0, len(megabatches), max(SCAN // size, 1)):
        block = megabatches[begin : begin + max(SCAN // size, 1)]
        by_cost = np.argsort(-costs[block], axis=1, kind="stable")
        ordered = np.take_along_axis(block, by_cost, axis=1)
        micro_steps = _deal(ordered.reshape(-1, accumulation, batch_size, world_size))
        shuffled = _shuffle(bits, *micro_steps.shape[:2])
        block[:] = np.take_along_axis(micro_steps, shuffled[:, :, None, None], axis=1).reshape(block.shape)
    return np.concatenate([megabatches.reshape(-1), *rest])


def _deal(sorted_MABW: np.ndarray) -> np.ndarray:
    """Samples of micro-steps, costliest first, to ranks: round after round, every other one backwards.

    sorted_MABW: megabatch, micro-step, round, place in the round. Returns megabatch, micro-step, rank, sample.
    """
    dealt = sorted_MABW.copy()
    dealt[:, :, 1::2] = sorted_MABW[:, :, 1::2, ::-1]
    return dealt.swapaxes(2, 3)


def _shuffle(bits: np.random.PCG64, *shape: int) -> np.ndarray:
    """Random permutations of the last axis."""
    return np.argsort(bits.random_raw(shape), axis=-1, kind="stable")
