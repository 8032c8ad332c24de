"""Random numbers of pairs, each a pure function of a key: the same on any number of ranks, in any order, on any day."""

from enum import IntEnum

import numpy as np


class Purpose(IntEnum):
    """What a stream of numbers is for, so that no two share one."""

    IMAGE, SECOND_IMAGE, FALSE_IMAGE, FALSE_PLACE, MASK, NEGATIVES = range(6)


class Draws:
    """Numbers in [0, 1), one after the other.

    Args:
        purpose: What they are for.
        key: Whole numbers, not negative: seed, epoch and the index of a pair, or a place in the epoch's order.
    """

    def __init__(self, purpose: Purpose, *key: int):
        # Bits are the same in every version of numpy; what its Generator makes of them is not.
        self._bits = np.random.PCG64([*key, purpose])

    def __call__(self) -> float:
        """The next number."""
        return (int(self._bits.random_raw()) >> 11) * 2.0**-53

    def between(self, low: float, high: float) -> float:
        """A number in [low, high)."""
        return low + (high - low) * self()

    def below(self, count: int) -> int:
        """A whole number in [0, count)."""
        return int(self() * count)
