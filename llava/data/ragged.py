"""Rows of unequal length as two arrays: millions of short lists would be gigabytes of Python's objects."""

from collections.abc import Iterator, Sequence
from functools import cached_property

import numpy as np

from llava.data.index import SCAN


class Ragged:
    """values: of all rows, one behind the other (V, ...). counts: how many of them each row has (N,)."""

    def __init__(self, values: np.ndarray, counts: np.ndarray):
        self.values, self.counts = values, counts

    @cached_property
    def ends(self) -> np.ndarray:
        """Where each row ends among the values (N,)."""
        return np.cumsum(self.counts, dtype=np.int64)

    @classmethod
    def of(cls, rows: Sequence[Sequence], width: int) -> "Ragged":
        """rows: of values that are `width` numbers each, or a number alone where that is 0."""
        values = np.array([value for row in rows for value in row], dtype=np.int64)
        values = values.reshape(-1, width) if width else values
        return cls(values, np.array([len(row) for row in rows], dtype=np.int64))

    def __len__(self) -> int:
        return len(self.counts)

    def __getitem__(self, row: int) -> list:
        end = int(self.ends[row])
        values = self.values[end - int(self.counts[row]) : end].tolist()
        return [tuple(value) for value in values] if self.values.ndim > 1 else values

    def __iter__(self) -> Iterator[list]:
        return (self[row] for row in range(len(self)))

    def blocks(self) -> Iterator["Ragged"]:
        """The rows, SCAN at a time."""
        end = 0
        for row in range(0, len(self), SCAN):
            counts = self.counts[row : row + SCAN]
            begin, end = end, end + int(counts.sum())
            yield Ragged(self.values[begin:end], counts)

    def sums(self, numbers: np.ndarray) -> np.ndarray:
        """The sum of each row, of numbers that stand for the values (V,)."""
        if not len(numbers):
            return np.zeros(len(self), dtype=np.int64)
        before = np.concatenate([np.zeros(1, np.int64), np.cumsum(numbers, dtype=np.int64)])
        return before[self.ends] - before[self.ends - self.counts]
