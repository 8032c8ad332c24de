"""What a Collator's micro-batch holds, for the log of steps.

No tensor's content is read, which would wait for the GPU.
"""

import torch


def count_batch(batch: dict) -> torch.Tensor:
    """int64 on the CPU: tokens, squared tokens by sequence, positions, supervised tokens, crops.

    batch: a Collator's, wherever its tensors are.
    """
    lengths = batch["sequence_lengths"]
    crops = sum(len(batch[key]) for key in ("pixel_values", "pixel_values_videos") if key in batch)
    positions, supervised = batch["input_ids"].numel(), len(batch["supervised_positions"])
    return torch.tensor([sum(lengths), sum(length**2 for length in lengths), positions, supervised, crops])


def count_visual(batch: dict) -> torch.Tensor:
    """int64 on the CPU: visual tokens, their pairs, images and videos, tokens and pairs of the questions about these.

    As of images and videos that share the tokens evenly; see llava.mllm.cost.Cost. Without questions in the batch they
    are 0.
    """
    tokens = len(batch["visual_positions"])
    shown = sum(len(batch.get(key, ())) for key in ("image_sizes", "video_num_frames"))
    each = tokens / max(shown, 1)
    asked = sum(length or each for length in batch.get("question_lengths", ())) if shown else 0
    return torch.tensor([tokens, tokens**2 // max(shown, 1), shown, round(asked), round(each * asked)])


def count(batch: dict) -> torch.Tensor:
    """int64 on the CPU: what count_batch and count_visual count."""
    return torch.cat([count_batch(batch), count_visual(batch)])


def tokens_of(batch: dict) -> int:
    """Without padding."""
    return sum(batch["sequence_lengths"])
