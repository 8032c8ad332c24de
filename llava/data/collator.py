"""Encoded samples to one batch."""

from dataclasses import dataclass

import torch

from llava.constants import IGNORE_INDEX


@dataclass(frozen=True)
class Collator:
    """Pads text on the right and lays the crops of all images one after the other."""

    pad_token_id: int

    def __call__(self, items: list[dict]) -> dict[str, torch.Tensor]:
        """items: see LlavaOVManagerProcessor.encode_sample.

        Returns input_ids, attention_mask, labels (B, L) and, if any sample has images, pixel_values (crops, 3, S, S),
        image_sizes (images, 2) and batch_num_images (B,).
        """
        length = max(len(item["input_ids"]) for item in items)
        batch = {
            "input_ids": _pad([item["input_ids"] for item in items], length, self.pad_token_id),
            "attention_mask": _pad([[1] * len(item["input_ids"]) for item in items], length, 0),
            "labels": _pad([item["labels"] for item in items], length, IGNORE_INDEX),
        }
        with_images = [item for item in items if item["num_images"]]
        if with_images:
            batch["pixel_values"] = torch.cat([item["pixel_values"] for item in with_images])
            batch["image_sizes"] = torch.cat([item["image_sizes"] for item in with_images])
            batch["batch_num_images"] = torch.tensor([item["num_images"] for item in items])
        return batch


def _pad(rows: list[list[int]], length: int, value: int) -> torch.Tensor:
    return torch.tensor([row + [value] * (length - len(row)) for row in rows])
