"""The vision tower: the layers of a ViT, of which only the needed states are kept, and of those only the patches."""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, SiglipVisionModel
from transformers.models.clip.modeling_clip import CLIPVisionModel
from transformers.models.dinov2.modeling_dinov2 import Dinov2Model
from transformers.models.dinov2_with_registers.modeling_dinov2_with_registers import Dinov2WithRegistersModel

from llava.mllm.kinds import leading_tokens
from llava.mllm.parts import UNUSED, VISION_TOWER


class VisionTower(nn.Module):
    """What makes a tower of transformers' class one whose forward returns chosen hidden states; stands in front of it.

    Weights that no used state passes (the last norm, what masks patches) stay, so that checkpoints load strictly.

    leading: how many tokens stand in front of the patches: a class token and registers, which pass the layers and are
        left out of the states.
    """

    config: Any
    embeddings: Any
    encoder: Any

    def __init__(self, config: PreTrainedConfig):
        super().__init__(config)  # transformers' class, which is next in line
        self.leading = leading_tokens(config)
        unused = tuple(name.removeprefix(VISION_TOWER) for name in UNUSED)
        for name, parameter in self.named_parameters():
            if name.startswith(unused):
                parameter.requires_grad_(False)

    @property
    def layers(self) -> nn.ModuleList:
        """The repeated layers."""
        return self.encoder.layers

    @property
    def attentions(self) -> list[Any]:
        """The attention of each layer."""
        return [layer.self_attn for layer in self.layers]

    def embedded(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """What the first layer gets: (crops, tokens, width), the leading tokens first."""
        return self.embeddings(pixel_values)

    def forward(
        self, pixel_values: torch.Tensor, layers: list[int], max_tokens: int | None = None
    ) -> list[torch.Tensor]:
        """Hidden states of a tower whose layers are run as far as they are needed.

        pixel_values: (crops, 3, S, S), normalised. layers: indices of hidden states, 0 = what the first layer gets.
        max_tokens: how many patches of each crop pass the layers, None for all; the first one exercises every weight.

        Returns one (crops, patches, width) for each of `layers`, in their order; layers above the highest are not run.
        Every layer's gradient has one memory layout, so that sums over it have the same order, and bits, whether
        a method of fusion takes lower states or not.
        """
        hidden_states, leading = self.embedded(pixel_values), self.leading
        if max_tokens is not None:
            hidden_states = hidden_states[:, : leading + max_tokens]
        kept = {0: _behind(hidden_states, leading)} if 0 in layers else {}
        for index, layer in enumerate(self.layers[: max(layers)], start=1):
            hidden_states = layer(hidden_states, None)
            if hidden_states.requires_grad:
                hidden_states.register_hook(torch.Tensor.contiguous)
            if index in layers:
                kept[index] = _behind(hidden_states, leading)
        return [kept[layer] for layer in layers]


def _behind(states: torch.Tensor, leading: int) -> torch.Tensor:
    return states[:, leading:] if leading else states


class MultiLayerSiglip(VisionTower, SiglipVisionModel):
    """SigLIP, and SigLIP2 at one resolution, without pooling head."""


class MultiLayerClip(VisionTower, CLIPVisionModel):
    """CLIP."""

    pre_layrnorm: nn.LayerNorm

    def embedded(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """See VisionTower."""
        return self.pre_layrnorm(self.embeddings(pixel_values))


class _Dinov2Layers(VisionTower):
    """DINOv2's names."""

    @property
    def layers(self) -> nn.ModuleList:
        """See VisionTower."""
        return self.encoder.layer

    @property
    def attentions(self) -> list[Any]:
        """See VisionTower."""
        return [layer.attention for layer in self.layers]


class MultiLayerDinov2(_Dinov2Layers, Dinov2Model):
    """DINOv2."""


class MultiLayerDinov2WithRegisters(_Dinov2Layers, Dinov2WithRegistersModel):
    """DINOv2 with registers."""


TOWERS: dict[str, type[VisionTower]] = {
    "siglip_vision_model": MultiLayerSiglip,
    "clip_vision_model": MultiLayerClip,
    "dinov2": MultiLayerDinov2,
    "dinov2_with_registers": MultiLayerDinov2WithRegisters,
}
