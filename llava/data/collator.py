"""Encoded samples to one batch."""

from dataclasses import dataclass
from typing import Any

import torch

from llava.constants import IGNORE_INDEX

# What a sample has of each modality.
VISUAL_KEYS = {
    "images": ("pixel_values", "image_sizes"),
    "videos": ("pixel_values_videos", "video_num_frames"),
}


@dataclass(frozen=True)
class Collator:
    """Joins the text of samples, and lays the crops of all images, and the frames of all videos, one after the other.

    packing: put all samples in one row, one behind the other, instead of in rows that are padded on the right.
    """

    pad_token_id: int
    packing: bool = False

    def __call__(self, items: list[dict]) -> dict:
        """items: see LlavaOVManagerProcessor.encode_sample, or SupervisedDataset, which adds each sample's origin.

        Returns input_ids, attention_mask, labels (B, L); if any sample has images, pixel_values (crops, 3, S, S),
        image_sizes (images, 2) and batch_num_images (B,); if any has videos, pixel_values_videos (frames, 3, S, S),
        video_num_frames (videos,) and batch_num_videos (B,). Where the items have origins, samples has the B of them,
        for messages and counts; the model does not take it.
        With packing input_ids, position_ids, labels are (1, sum of L): the positions, which begin anew with each
        sample, keep them apart. The labels then leave out each sample's first token, which nothing predicts.
        """
        batch: dict[str, Any] = _packed(items) if self.packing else self._padded(items)
        for modality, keys in VISUAL_KEYS.items():
            counts = [item[f"num_{modality}"] for item in items]
            if any(counts):
                batch |= {key: torch.cat([item[key] for item in items if key in item]) for key in keys}
                batch[f"batch_num_{modality}"] = torch.tensor(counts)
        if all("sample" in item for item in items):
            batch["samples"] = [item["sample"] for item in items]
        return batch

    def _padded(self, items: list[dict]) -> dict[str, torch.Tensor]:
        length = max(len(item["input_ids"]) for item in items)
        return {
            "input_ids": _pad([item["input_ids"] for item in items], length, self.pad_token_id),
            "attention_mask": _pad([[1] * len(item["input_ids"]) for item in items], length, 0),
            "labels": _pad([item["labels"] for item in items], length, IGNORE_INDEX),
        }


def take_origins(batch: dict) -> list:
    """Takes the samples' origins out of a batch; what is left is what the model takes."""
    return batch.pop("samples")


def _packed(items: list[dict]) -> dict[str, torch.Tensor]:
    labels = [[IGNORE_INDEX, *item["labels"][1:]] for item in items]
    return {
        "input_ids": torch.tensor([[token for item in items for token in item["input_ids"]]]),
        "position_ids": torch.tensor([[place for item in items for place in range(len(item["input_ids"]))]]),
        "labels": torch.tensor([[label for of_one in labels for label in of_one]]),
    }


def _pad(rows: list[list[int]], length: int, value: int) -> torch.Tensor:
    return torch.tensor([row + [value] * (length - len(row)) for row in rows])
