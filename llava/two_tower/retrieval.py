"""Retrieval: the towers compare all images with all texts (ITC), and the whole model ranks the nearest anew (ITM).

A pair that is near in either direction is scored once: of the two directions' scores, of which the reference takes the
higher one, one is this, and the other is the same or none. Images are gone through one by one, so that of the towers'
states those of all texts are kept, and of one image; of the images that are ranked anew, the pixels.

Legend: I images, T texts, C width of the space in which ITC compares.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch

from llava.two_tower.modeling import Encoded, TwoTowerForTask

NOT_RANKED = -100.0  # the score of a pair that is not near


@dataclass
class Texts:
    """All texts as the text tower leaves them: batches of their states, and in ITC's space (T, C)."""

    parts: list[Encoded]
    masks: list[torch.Tensor]
    embeddings: torch.Tensor

    def rows(self, numbers: list[int], size: int) -> tuple[Encoded, torch.Tensor]:
        """States and mask of these texts. size: of every part but the last."""
        places = [divmod(number, size) for number in numbers]
        states = torch.stack([self.parts[part].states[:, row] for part, row in places], 1)
        cls = torch.stack([self.parts[part].cls[row] for part, row in places])
        return Encoded(states, cls), torch.stack([self.masks[part][row] for part, row in places])


class Retrieval:
    """A model's comparison of images and texts.

    Args:
        model: Of the task retrieval, in evaluation.
        reranked: How many of an image's texts, and of a text's images, ITM ranks anew.
        batch_size: Texts, or images, that a tower takes at a time, and pairs that ITM does.
        keep_on: Where the texts' states wait, on the model's device by default.
    """

    def __init__(self, model: TwoTowerForTask, reranked: int, batch_size: int, keep_on: torch.device | None = None):
        self.model, self.reranked, self.batch_size = model, reranked, batch_size
        self.keep_on = keep_on or model.device

    @torch.inference_mode()
    def encode_texts(self, batches: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> Texts:
        """batches: input_ids and attention_mask, of batch_size texts each."""
        parts, masks, embeddings = [], [], []
        for ids, mask in batches:
            encoded = self.model.model.encode_text(ids.to(self.model.device), mask.to(self.model.device))
            embeddings.append(self.model.contrastive.embed_text(encoded.cls).float().cpu())
            parts.append(Encoded(encoded.states.to(self.keep_on), encoded.cls.to(self.keep_on)))
            masks.append(mask.to(self.keep_on))
        return Texts(parts, masks, torch.cat(embeddings))

    @torch.inference_mode()
    def embed_images(self, batches: Iterable[torch.Tensor]) -> torch.Tensor:
        """All images in ITC's space (I, C). batches: of their pixels (B, 3, S, S)."""
        embeddings = [
            self.model.contrastive.embed_image(self.model.model.encode_image(pixels.to(self.model.device)).cls)
            for pixels in batches
        ]
        return torch.cat([embedded.float().cpu() for embedded in embeddings])

    def near(self, images_IC: torch.Tensor, texts_TC: torch.Tensor) -> list[list[int]]:
        """Of each image the texts, ascending, that are near it, or that it is near to."""
        similar_IT = images_IC @ texts_TC.T
        near_IT = torch.zeros_like(similar_IT, dtype=torch.bool)
        near_IT.scatter_(1, similar_IT.topk(min(self.reranked, similar_IT.shape[1]), 1).indices, True)
        near_IT.scatter_(0, similar_IT.topk(min(self.reranked, similar_IT.shape[0]), 0).indices, True)
        return [row.nonzero()[:, 0].tolist() for row in near_IT]

    @torch.inference_mode()
    def match(self, pixels: torch.Tensor, texts: Texts, numbers: list[int]) -> list[float]:
        """ITM's logit of class 1 of an image (3, S, S) with each of these texts."""
        device, logits = self.model.device, []
        image = self.model.model.encode_image(pixels[None].to(device))
        for first in range(0, len(numbers), self.batch_size):
            chosen = numbers[first : first + self.batch_size]
            text, mask = texts.rows(chosen, self.batch_size)
            text, mask = Encoded(text.states.to(device), text.cls.to(device)), mask.to(device)
            repeated = image.rows(torch.zeros(len(chosen), dtype=torch.int64, device=device))
            logits += self.model.match(text, repeated, mask)[:, 1].float().tolist()
        return logits


def scores_of(near: Iterable[list[int]], logits: Iterable[list[float]], num_texts: int) -> np.ndarray:
    """Scores of every image with every text (I, T): of the near ones their logits, else NOT_RANKED."""
    rows = []
    for numbers, values in zip(near, logits, strict=True):
        row = np.full(num_texts, NOT_RANKED, np.float32)
        row[numbers] = values
        rows.append(row)
    return np.stack(rows)
