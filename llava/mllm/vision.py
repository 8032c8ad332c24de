"""The vision tower: SigLIP's layers, of which only the needed states are kept."""

import torch
from transformers import SiglipVisionConfig, SiglipVisionModel


class MultiLayerSiglip(SiglipVisionModel):
    """SiglipVisionModel without pooling head whose forward returns chosen hidden states.

    The post-layernorm stays in the weights, so that checkpoints load strictly, but no used state passes through it.
    """

    def __init__(self, config: SiglipVisionConfig):
        super().__init__(config)
        self.post_layernorm.requires_grad_(False)

    def forward(
        self, pixel_values: torch.Tensor, layers: list[int], max_tokens: int | None = None
    ) -> list[torch.Tensor]:
        """Hidden states of a tower whose layers are run as far as they are needed.

        pixel_values: (crops, 3, S, S), normalised. layers: indices of hidden states, 0 = the embeddings.
        max_tokens: how many tokens of each crop pass the layers, None for all; the first one exercises every weight.

        Returns one (crops, tokens, width) for each of `layers`, in their order; layers above the highest are not run.
        Every layer's gradient has one memory layout, so that sums over it have the same order, and bits, whether
        a method of fusion takes lower states or not.
        """
        hidden_states = self.embeddings(pixel_values)
        if max_tokens is not None:
            hidden_states = hidden_states[:, :max_tokens]
        kept = {0: hidden_states} if 0 in layers else {}
        for index, layer in enumerate(self.encoder.layers[: max(layers)], start=1):
            hidden_states = layer(hidden_states, None)
            if hidden_states.requires_grad:
                hidden_states.register_hook(torch.Tensor.contiguous)
            if index in layers:
                kept[index] = hidden_states
        return [kept[layer] for layer in layers]
