"""What makes samples costly, as arrays of few bytes a sample."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np

from llava.data.index import SCAN


@dataclass(frozen=True)
class SampleSizes:
    """What makes samples costly, one value per sample: crops (frames too), tokens, and supervised tokens among them.

    visual_tokens, visual_pairs: those among the tokens, and the sum of the squared ones of each image and video. shown:
    images and videos. question: tokens of the question about each of them, 0 where nothing is asked. Of a data set's
    samples the last two are uint16, the pairs int64, the others int32.
    """

    crops: np.ndarray
    tokens: np.ndarray
    supervised: np.ndarray
    visual_tokens: np.ndarray | None = None
    visual_pairs: np.ndarray | None = None
    shown: np.ndarray | None = None
    question: np.ndarray | None = None

    def costs(self, cost: Callable[..., np.ndarray]) -> np.ndarray:
        """Operations of each sample; cost: see llava.mllm.cost.Cost."""
        return np.concatenate(
            [self._costs(cost, slice(begin, begin + SCAN)) for begin in range(0, max(len(self.tokens), 1), SCAN)]
        )

    def _costs(self, cost: Callable[..., np.ndarray], block: slice) -> np.ndarray:
        every = {one.name: getattr(self, one.name) for one in fields(self)}
        given = {name: values[block].astype(np.int64) for name, values in every.items() if values is not None}
        if (question := given.pop("question", None)) is not None:  # of an image that nothing is asked about: its tokens
            given["question_tokens"] = np.where(question, question * given["shown"], given["visual_tokens"])
            given["question_pairs"] = np.where(question, question * given["visual_tokens"], given["visual_pairs"])
        return cost(**given)


class VisualCounts(NamedTuple):
    """What samples show, one value per sample: crops (frames too), tokens of these, the pairs, images and videos.

    pairs: the sum of the squared tokens of each image and video. shown: how many of these.
    """

    crops: np.ndarray
    tokens: np.ndarray
    pairs: np.ndarray
    shown: np.ndarray
