"""What makes samples costly, as arrays of few bytes a sample."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from llava.data.index import SCAN


@dataclass(frozen=True)
class SampleSizes:
    """What makes samples costly, one value per sample: crops (frames too), tokens, and supervised tokens among them.

    visual_tokens, visual_pairs: those among the tokens, and the sum of the squared ones of each image and video. Of a
    data set's samples they are int32 but for the pairs, which are int64.
    """

    crops: np.ndarray
    tokens: np.ndarray
    supervised: np.ndarray
    visual_tokens: np.ndarray | None = None
    visual_pairs: np.ndarray | None = None

    def costs(self, cost: Callable[..., np.ndarray]) -> np.ndarray:
        """Operations of each sample; cost: see llava.mllm.cost.Cost."""
        return np.concatenate(
            [self._costs(cost, slice(begin, begin + SCAN)) for begin in range(0, max(len(self.tokens), 1), SCAN)]
        )

    def _costs(self, cost: Callable[..., np.ndarray], block: slice) -> np.ndarray:
        crops, tokens, supervised, visual_tokens, visual_pairs = (
            None if values is None else values[block].astype(np.int64)
            for values in (self.crops, self.tokens, self.supervised, self.visual_tokens, self.visual_pairs)
        )
        return cost(crops, tokens, supervised, visual_tokens=visual_tokens, visual_pairs=visual_pairs)


class VisualCounts(NamedTuple):
    """What samples show, one value per sample: crops (frames too), tokens of these, and the pairs.

    pairs: the sum of the squared tokens of each image and video.
    """

    crops: np.ndarray
    tokens: np.ndarray
    pairs: np.ndarray
