"""Encoded pairs to one batch."""

from typing import Any

import torch

TEXTS = ("input_ids", "attention_mask", "mlm_input_ids", "mlm_labels")  # with padding on their right
OF_SOME = "false_pixel_values"  # what not every item has


def collate_pairs(items: list[dict[str, Any]], padded: bool = True) -> dict[str, Any]:
    """Joins what each item has: see PairDataset.

    Args:
        items: B of one dataset.
        padded: Whether texts stay as long as the processor makes them; else padding that all texts have is cut off,
            which changes nothing where padding is masked (config.mask_padding).

    Returns:
        input_ids, attention_mask (B, L); pixel_values (B, 3, S, S), of two images pixel_values_2 also; and by the
        dataset's parts mlm_input_ids, mlm_labels (B, L), -100 where nothing is predicted; itm_labels (B,),
        false_pixel_values (F, 3, S, S) of the F pairs whose label is 0, in their order; targets (B, answers) in
        [0, 1]; labels (B,); image_index (B,), negative_draws (B, 2) in [0, 1). samples: the B origins, which the model
        does not take (see llava.data.collator.take_origins).
    """
    batch: dict[str, Any] = {"samples": [item["sample"] for item in items]}
    for name in items[0].keys() - {"sample", OF_SOME}:
        values = [item[name] for item in items]
        batch[name] = torch.stack(values) if isinstance(values[0], torch.Tensor) else torch.tensor(values)
    if "itm_labels" in batch:
        false = [item[OF_SOME] for item in items if OF_SOME in item]
        batch[OF_SOME] = torch.stack(false) if false else batch["pixel_values"][:0]
    if padded:
        return batch
    longest = int(batch["attention_mask"].sum(1).max())
    return {name: value[:, :longest] if name in TEXTS else value for name, value in batch.items()}
