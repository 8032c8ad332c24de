"""The order of training: batches of one modality and similar length, balanced over ranks."""

import random
from collections.abc import Iterator

from torch.utils.data import Sampler


class LengthGroupedSampler(Sampler[int]):
    """Indices of one epoch, for all ranks, in the order batch by batch: rank 0's first, then rank 1's, and so on.

    Text-only and multimodal samples are shuffled apart and cut into megabatches of one optimizer step
    (world_size * accumulation * batch_size). Within one, samples are sorted by length and dealt out so that the ranks'
    batches of a micro-step hold samples of similar length and about equal sums. Megabatches are shuffled; what does not
    fill one comes last. The order depends on (seed, epoch) alone.
    """

    def __init__(
        self,
        lengths: list[int],
        is_multimodal: list[bool],
        *,
        batch_size: int,
        world_size: int = 1,
        accumulation: int = 1,
        seed: int = 0,
    ):
        self.lengths = lengths
        self.is_multimodal = is_multimodal
        self.batch_size = batch_size
        self.world_size = world_size
        self.accumulation = accumulation
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = random.Random(f"{self.seed}/{self.epoch}")
        size = self.batch_size * self.world_size * self.accumulation
        full, rest = [], []
        for modality in (True, False):
            indices = [index for index, multimodal in enumerate(self.is_multimodal) if multimodal == modality]
            generator.shuffle(indices)
            complete = len(indices) // size * size
            full += [indices[begin : begin + size] for begin in range(0, complete, size)]
            rest += indices[complete:]
        generator.shuffle(full)
        for megabatch in full:
            yield from self._arrange(megabatch, generator)
        yield from rest

    def _arrange(self, megabatch: list[int], generator: random.Random) -> list[int]:
        """Micro-steps of similar length in random order; within each, ranks with about equal sums."""
        ordered = sorted(megabatch, key=lambda index: self.lengths[index], reverse=True)
        step = self.batch_size * self.world_size
        micro_steps = [ordered[begin : begin + step] for begin in range(0, len(ordered), step)]
        generator.shuffle(micro_steps)
        return [index for indices in micro_steps for rank in self._balance(indices) for index in rank]

    def _balance(self, indices: list[int]) -> list[list[int]]:
        """Longest first, each to the rank with the smallest sum that still has room."""
        ranks: list[list[int]] = [[] for _ in range(self.world_size)]
        sums = [0] * self.world_size
        for index in indices:
            open_ranks = [rank for rank in range(self.world_size) if len(ranks[rank]) < self.batch_size]
            rank = min(open_ranks, key=lambda rank: (sums[rank], rank))
            ranks[rank].append(index)
            sums[rank] += self.lengths[index]
        return ranks
