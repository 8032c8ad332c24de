"""The two towers: transformers' models, of which the last layers are kept.

Shapes: B examples, L text tokens, P image tokens (the class token and one a patch), W a tower's width.
"""

import hashlib
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel

from llava.errors import LlavaError

# Of an image tower, by transformers' model_type: the LayerNorm behind its last layer, and its table of positions.
FINAL_NORMS = {
    "clip_vision_model": "post_layernorm",
    "vit": "layernorm",
    "dinov2": "layernorm",
    "dinov2_with_registers": "layernorm",
}
POSITIONS = {
    "clip_vision_model": "embeddings.position_embedding.weight",
    "vit": "embeddings.position_embeddings",
    "dinov2": "embeddings.position_embeddings",
    "dinov2_with_registers": "embeddings.position_embeddings",
}


def make_text_tower(config: PreTrainedConfig) -> PreTrainedModel:
    """A BERT-like tower without its pooling layer."""
    return AutoModel.from_config(config, add_pooling_layer=False)


def make_image_tower(config: PreTrainedConfig) -> PreTrainedModel:
    """A ViT-like tower without a pooling layer, where it would have one."""
    pooling: dict[str, Any] = {"add_pooling_layer": False} if config.model_type == "vit" else {}
    return AutoModel.from_config(config, **pooling)


def text_states(
    tower: PreTrainedModel, input_ids: torch.Tensor, attention_mask: torch.Tensor, kept: int
) -> list[torch.Tensor]:
    """The last `kept` layers' outputs, (B, L, W) each. attention_mask: (B, L), 0 at padding."""
    outputs = tower(input_ids=input_ids, attention_mask=attention_mask, output_hidden_states=True)
    return list(outputs.hidden_states[-kept:])


def image_states(tower: PreTrainedModel, pixel_values: torch.Tensor, kept: int) -> list[torch.Tensor]:
    """The last `kept` layers' outputs, each through the tower's final LayerNorm, (B, P, W) each.

    pixel_values: (B, 3, S, S).
    """
    size, given = tower.config.image_size, tuple(pixel_values.shape[-2:])
    if given != (size, size):
        raise LlavaError(f"the image tower takes images of {size} x {size} pixels, found {given[1]} x {given[0]}")
    outputs = tower(pixel_values=pixel_values, output_hidden_states=True)
    norm = tower.get_submodule(FINAL_NORMS[tower.config.model_type])
    return [norm(states) for states in outputs.hidden_states[-kept:]]


class KeptStates:
    """States of a tower of which nothing learns, computed once an input and kept in memory.

    Each input goes through the tower alone, so that its states depend neither on the others of a batch nor on what was
    seen before: a run that goes on has the same bits. They stay on the tower's device.

    Args:
        states: Of a batch, a layer each: text_states or image_states of the tower.
    """

    def __init__(self, states: Callable[..., list[torch.Tensor]]):
        self._states = states
        self._kept: dict[bytes, torch.Tensor] = {}

    def of_texts(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> list[torch.Tensor]:
        """As text_states, but for states at padding, which is on the right, and where they are 0."""
        texts = [ids[:length] for ids, length in zip(input_ids, attention_mask.sum(1).tolist())]
        layers = [self._of(ids, ids[None], torch.ones_like(ids)[None]) for ids in texts]
        longest = input_ids.shape[1]
        padded = [nn.functional.pad(states, (0, 0, 0, longest - states.shape[1])) for states in layers]
        return list(torch.stack(padded, 1))

    def of_images(self, pixel_values: torch.Tensor) -> list[torch.Tensor]:
        """As image_states."""
        return list(torch.stack([self._of(pixels, pixels[None]) for pixels in pixel_values], 1))

    def _of(self, content: torch.Tensor, *inputs: torch.Tensor) -> torch.Tensor:
        """(N, L or P, W) of a batch of one."""
        key = hashlib.sha256(content.contiguous().view(torch.uint8).cpu().numpy().tobytes()).digest()
        if key not in self._kept:
            with torch.inference_mode(False), torch.no_grad():
                self._kept[key] = torch.stack(self._states(*inputs))[:, 0]
        return self._kept[key]


def resized_positions(table: torch.Tensor, image_size: int, patch_size: int) -> torch.Tensor:
    """Position embeddings of images of another size: those of patches resized bicubically, the class token's kept.

    table: (1 + g * g, W) or (1, 1 + g * g, W), the class token's row first. Returns the same with the grid of
    image_size. Done once, when pretrained weights are loaded (as the reference does it: align_corners False).
    """
    side, before = image_size // patch_size, math.isqrt(table.shape[-2] - 1)
    if image_size % patch_size or before * before != table.shape[-2] - 1:
        raise LlavaError(
            f"{table.shape[-2]} position embeddings are not those of a class token and a square of patches, to be "
            f"resized for {image_size} pixels in patches of {patch_size}"
        )
    if side == before:
        return table
    rows = table.reshape(-1, table.shape[-1])
    patches = rows[1:].T.reshape(1, -1, before, before)
    resized = nn.functional.interpolate(patches.float(), size=(side, side), mode="bicubic", align_corners=False)
    resized_rows = torch.cat([rows[:1], resized.flatten(2)[0].T.to(rows.dtype)])
    return resized_rows.reshape(*table.shape[:-2], *resized_rows.shape)


def fitted_positions(
    state: Mapping[str, torch.Tensor], config: PreTrainedConfig, prefix: str = ""
) -> dict[str, torch.Tensor]:
    """The state of an image tower, its positions resized to config.image_size.

    prefix: of the tower's names in the state. Raises LlavaError where the state has no table of positions.
    """
    name = prefix + POSITIONS[config.model_type]
    if name not in state:
        raise LlavaError(f"the weights of a {config.model_type} tower have no {name}")
    return {**state, name: resized_positions(state[name], config.image_size, config.patch_size)}
