"""The samples of a mixture as a sequence: a row number each, and the record parsed when it is asked for."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, overload

import numpy as np

from llava.data.index import BLOCK, SCAN, RecordIndex
from llava.data.indexing import text_bytes
from llava.data.schema import Sample


@dataclass(frozen=True)
class Part:
    """The rows, ascending, that are taken of one data file."""

    index: RecordIndex
    rows: Sequence[int] | np.ndarray

    def between(self, first: int, last: int) -> np.ndarray:
        """Those of the rows that are at least `first` and less than `last`, int64."""
        if isinstance(self.rows, range):
            return np.arange(max(first, self.rows.start), min(last, self.rows.stop))
        begin, end = np.searchsorted(self.rows, [first, last])
        return np.asarray(self.rows[begin:end], dtype=np.int64)

    def column(self, name: str) -> np.ndarray:
        """A field of ROW, one value a row that is taken."""
        column = self.index.facts.rows[name]
        if isinstance(self.rows, range):
            return column[self.rows.start : self.rows.stop]
        return column[np.asarray(self.rows, dtype=np.int64)]


class RecordStore(Sequence[Sample]):
    """Samples of several data files, one file behind the other. Equal to any sequence of the same samples."""

    def __init__(self, parts: Sequence[Part]):
        self.parts = [
            part if isinstance(part.rows, range) else Part(part.index, np.asarray(part.rows, dtype=np.int64))
            for part in parts
        ]
        self.ends = np.cumsum([len(part.rows) for part in parts], dtype=np.int64)

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    @overload
    def __getitem__(self, position: int) -> Sample: ...

    @overload
    def __getitem__(self, position: slice) -> list[Sample]: ...

    def __getitem__(self, position: int | slice) -> Sample | list[Sample]:
        if isinstance(position, slice):
            return [self[number] for number in range(*position.indices(len(self)))]
        number = position + len(self) if position < 0 else position
        if not 0 <= number < len(self):
            raise IndexError(f"sample {position} of {len(self)}")
        place = int(np.searchsorted(self.ends, number, side="right"))
        part = self.parts[place]
        return part.index.sample(int(part.rows[number - (int(self.ends[place]) - len(part.rows))]))

    def __iter__(self) -> Iterator[Sample]:
        for part in self.parts:
            for row in part.rows:
                yield part.index.sample(int(row))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(mine == theirs for mine, theirs in zip(self, other))

    def blocks(self) -> Iterator["RecordStore"]:
        """The samples, a few thousand at a time, for another process each."""
        for part in self.parts:
            for begin in range(0, len(part.rows), BLOCK):
                yield RecordStore([Part(part.index, part.rows[begin : begin + BLOCK])])


class TextFacts(NamedTuple):
    """Of each sample: bytes of its turns' texts, of its answers among them, its turns, its images and its videos."""

    text: np.ndarray
    answers: np.ndarray
    turns: np.ndarray
    images: np.ndarray
    videos: np.ndarray

    @classmethod
    def blocks(cls, samples: Sequence[Sample]) -> Iterator[tuple[slice, "TextFacts"]]:
        """At most SCAN samples at a time: where they stand, and what is known of them.

        Read from the index of a RecordStore, counted for other samples.
        """
        if isinstance(samples, RecordStore):
            for part, end in zip(samples.parts, samples.ends.tolist()):
                for begin in range(0, len(part.rows), SCAN):
                    block = Part(part.index, part.rows[begin : begin + SCAN])
                    facts = cls(*(block.column(name).astype(np.int64) for name in cls._fields))
                    first = end - len(part.rows) + begin
                    yield slice(first, first + len(block.rows)), facts
            return
        for begin in range(0, len(samples), SCAN):
            rows = [
                (*text_bytes(sample.turns), len(sample.turns), len(sample.images), len(sample.videos))
                for sample in samples[begin : begin + SCAN]
            ]
            yield slice(begin, begin + len(rows)), cls(*np.array(rows, dtype=np.int64).T)


def is_multimodal(samples: Sequence[Sample]) -> np.ndarray:
    """Whether each sample has images or videos, bool (N,)."""
    found = np.zeros(len(samples), dtype=bool)
    for place, facts in TextFacts.blocks(samples):
        found[place] = facts.images + facts.videos > 0
    return found
