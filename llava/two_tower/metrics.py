"""What single answers of a two-tower model score, and retrieval's recalls. Needs numpy alone.

Legend: I images, T texts.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

RECALLS = (1, 5, 10)


def vqa_score(answer: str, scores: Mapping[str, float]) -> float:
    """VQA's accuracy of an answer: how right it is among those that people gave, 0 for others."""
    return float(scores.get(answer, 0.0))


@dataclass(frozen=True)
class Ranks:
    """Where the first right one stands, counted from 1: of each text's image (T,), and of each image's texts (I,)."""

    of_texts: np.ndarray
    of_images: np.ndarray

    def recalls(self) -> dict[str, float]:
        """IR (a text's image is among the first k) and TR (one of an image's texts is), in [0, 1], and their mean."""
        recalls = {
            f"{name}_r{k}": float((ranks <= k).mean())
            for name, ranks in (("ir", self.of_texts), ("tr", self.of_images))
            for k in RECALLS
        }
        return {**recalls, "r_mean": sum(recalls.values()) / len(recalls)}


def ranks_of(scores_IT: np.ndarray, image_of_text: np.ndarray) -> Ranks:
    """The ranks by scores of images and texts, higher is nearer. Of equal ones the right one is taken to be the last.

    Args:
        scores_IT: Of every image with every text.
        image_of_text: (T,), from 0 to I - 1; every image has a text.
    """
    texts = np.arange(len(image_of_text))
    right_T = scores_IT[image_of_text, texts]
    of_texts = (scores_IT >= right_T).sum(0)
    best_I = np.full(len(scores_IT), -np.inf)
    np.maximum.at(best_I, image_of_text, right_T)
    is_right = np.zeros(scores_IT.shape, bool)
    is_right[image_of_text, texts] = True
    of_images = 1 + ((scores_IT >= best_I[:, None]) & ~is_right).sum(1)
    return Ranks(of_texts, of_images)
