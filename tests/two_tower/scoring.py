"""Retrieval in one process, where evaluation shares images out among several."""

from collections.abc import Iterable, Sequence

import numpy as np
import torch

from llava.two_tower.retrieval import Retrieval, scores_of


def score_all(
    retrieval: Retrieval,
    texts: Iterable[tuple[torch.Tensor, torch.Tensor]],
    images: Sequence[torch.Tensor],
) -> np.ndarray:
    """Scores (I, T) of all images with all texts, in this one process.

    Args:
        retrieval: The model.
        texts: As encode_texts takes them.
        images: The pixels (3, S, S) of each.
    """
    encoded = retrieval.encode_texts(texts)
    embedded = retrieval.embed_images(pixels[None] for pixels in images)
    near = retrieval.near(embedded, encoded.embeddings)
    logits = [retrieval.match(pixels, encoded, numbers) for pixels, numbers in zip(images, near, strict=True)]
    return scores_of(near, logits, len(encoded.embeddings))
