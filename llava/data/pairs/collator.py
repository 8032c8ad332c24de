"""Encoded pairs to one batch."""

from typing import Any

import torch


def collate_pairs(items: list[dict[str, Any]]) -> dict[str, Any]:
    """Joins what each item has: see PairDataset.

    Returns:
        input_ids, attention_mask (B, L); pixel_values (B, 3, S, S), of two images pixel_values_2 also; and by the
        dataset's parts mlm_input_ids, mlm_labels (B, L), -100 where nothing is predicted; itm_pixel_values
        (B, 3, S, S), itm_labels (B,); targets (B, answers) in [0, 1]; labels (B,); image_index (B,), negative_draws
        (B, 2) in [0, 1). samples: the B origins, which the model does not take (see llava.data.collator.take_origins).
    """
    batch: dict[str, Any] = {"samples": [item["sample"] for item in items]}
    for name in items[0]:
        values = [item[name] for item in items]
        if name != "sample":
            batch[name] = torch.stack(values) if isinstance(values[0], torch.Tensor) else torch.tensor(values)
    return batch
