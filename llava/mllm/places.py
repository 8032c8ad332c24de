"""Where images and videos stand in a batch: whether what it says can be, and where it says nothing, looked for.

To look is to wait for the device.
"""

import torch
from torch import nn

from llava.errors import LlavaError
from llava.mllm.configuration import LlavaOVManagerConfig


def check_lengths(sequence_lengths: list[int], rows: int, columns: int) -> None:
    """Raises LlavaError where sequences of these lengths are none that are padded to, or share, rows of `columns`."""
    fits = sum(sequence_lengths) == columns if rows == 1 else len(sequence_lengths) == rows
    if not fits or max(sequence_lengths) > columns:
        shape = f"{rows} row{'s' if rows > 1 else ''} of {columns} tokens"
        raise LlavaError(f"sequence_lengths {sequence_lengths} do not fit {shape}")


def placeholder_positions(
    input_ids: torch.Tensor, counts: dict[str, int], config: LlavaOVManagerConfig, said: torch.Tensor | None = None
) -> torch.Tensor:
    """Flat positions (V,) of the placeholders in input_ids (B, L), of one modality after the other.

    Args:
        input_ids: token ids, or what recognised_ids makes of embeddings.
        counts: features of each modality, `image`, `video` or both.
        config: of the model, for the ids.
        said: the positions, where they are known.

    Raises:
        LlavaError: unless there is a placeholder for each feature.
    """
    if said is not None:
        if len(said) != sum(counts.values()):
            raise LlavaError(f"found {len(said)} visual_positions but {sum(counts.values())} features")
        return said
    positions = []
    for modality, count in counts.items():
        positions.append((input_ids == getattr(config, f"{modality}_token_id")).flatten().nonzero()[:, 0])
        if len(positions[-1]) != count:
            raise LlavaError(f"found {len(positions[-1])} {modality} tokens but {count} features in this batch")
    return torch.cat(positions)


def recognised_ids(inputs_embeds: torch.Tensor, embed: nn.Module, config: LlavaOVManagerConfig) -> torch.Tensor:
    """Ids (B, L) of placeholders and turn marks, recognised by their embeddings (B, L, D); -1 for other tokens.

    Args:
        inputs_embeds: what `embed` made of the ids.
        embed: the model's embedding.
        config: of the model, for the ids.
    """
    token_ids = [config.video_token_id, config.image_token_id]  # untrained, so maybe alike: the image wins
    if config.fusion.question_rule is not None:
        token_ids += [config.turn_start_token_id, config.turn_end_token_id, config.newline_token_id]
    ids = torch.full(inputs_embeds.shape[:2], -1, device=inputs_embeds.device)
    for token_id in token_ids:
        embedding = embed(torch.tensor(token_id, device=inputs_embeds.device)).to(inputs_embeds.device)
        ids[(inputs_embeds == embedding).all(-1)] = token_id
    return ids
