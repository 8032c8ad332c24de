"""The cross-modal encoder: two columns of layers, for text and image, each of which asks the other.

A block is a post-LayerNorm BERT block, self-attention, cross-attention, feed-forward, with weights of its own for each
modality. Both blocks of a layer read what entered the layer, so neither sees the other's output of the same layer.

Shapes: B examples, L tokens of a block's modality, K tokens of the other, D the hidden size, H heads of width D/H.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils.generic import is_flash_attention_requested

from llava.two_tower.bridges import make_bridge
from llava.two_tower.configuration import TwoTowerConfig


def eager_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention as written in papers: states (B, L, H, D/H) and weights (B, H, L, K)."""
    scores = query @ key.transpose(-1, -2) * scaling
    if attention_mask is not None:
        scores = scores.masked_fill(~attention_mask, -torch.inf)
    weights = nn.functional.dropout(scores.softmax(-1, dtype=torch.float32).to(query.dtype), dropout, module.training)
    return (weights @ value).transpose(1, 2), weights


class Attention(nn.Module):
    """Queries of one sequence to keys and values of the same or the other, then the residual and LayerNorm."""

    is_causal = False  # read by transformers' sdpa, which takes its absence for True

    def __init__(self, config: TwoTowerConfig):
        super().__init__()
        self.config = config
        width = config.hidden_size
        self.head_width = width // config.num_attention_heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.output = nn.Linear(width, width)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)

    def forward(self, states_BLD: torch.Tensor, context_BKD: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """(B, L, D). mask: (B, 1, 1, K), True where `context` can be attended to; None for everywhere."""
        attended, _ = self._function(mask)(
            self,
            self._heads(self.query(states_BLD)),
            self._heads(self.key(context_BKD)),
            self._heads(self.value(context_BKD)),
            mask,
            scaling=self.head_width**-0.5,
            dropout=self.config.attention_probs_dropout_prob if self.training else 0.0,
        )
        attended = self.output(attended.reshape(states_BLD.shape))
        return self.norm(self.dropout(attended) + states_BLD)

    def _heads(self, states: torch.Tensor) -> torch.Tensor:
        return states.unflatten(-1, (-1, self.head_width)).transpose(1, 2)

    def _function(self, mask: torch.Tensor | None) -> Callable:
        """Flash attention where nothing is masked, which is where images are: a mask is of a few dozen text tokens."""
        name = self.config._attn_implementation
        if mask is not None and is_flash_attention_requested(self.config):
            name = "sdpa"
        return ALL_ATTENTION_FUNCTIONS.get_interface(name, eager_attention)


class Block(nn.Module):
    """Self-attention, attention to the other modality, feed-forward."""

    def __init__(self, config: TwoTowerConfig):
        super().__init__()
        width = config.hidden_size
        self.self_attention = Attention(config)
        self.cross_attention = Attention(config)
        self.feed_in = nn.Linear(width, config.intermediate_size)
        self.feed_out = nn.Linear(config.intermediate_size, width)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)

    def forward(
        self,
        states_BLD: torch.Tensor,
        other_BKD: torch.Tensor,
        mask: torch.Tensor | None,
        other_mask: torch.Tensor | None,
    ) -> torch.Tensor:
        """(B, L, D). mask, other_mask: what can be attended to in states and in other, see Attention."""
        states_BLD = self.self_attention(states_BLD, states_BLD, mask)
        states_BLD = self.cross_attention(states_BLD, other_BKD, other_mask)
        fed = self.feed_out(nn.functional.gelu(self.feed_in(states_BLD)))
        return self.norm(self.dropout(fed) + states_BLD)


class CrossModalLayer(GradientCheckpointingLayer):
    """For each modality a bridge from the tower and a block. number: from 1."""

    def __init__(self, config: TwoTowerConfig, number: int):
        super().__init__()
        self.text_bridge = make_bridge(config, "text", number)
        self.image_bridge = make_bridge(config, "image", number)
        self.text = Block(config)
        self.image = Block(config)

    def forward(
        self,
        text_experts: torch.Tensor,
        image_experts: torch.Tensor,
        texts: list[torch.Tensor],
        images: list[torch.Tensor],
        text_mask: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """C of text and of image. texts, images: C of the layers before that bridges read, the nearest one last.

        The rest as in CrossModalEncoder.
        """
        text = self.text_bridge(text_experts, texts, images, None)
        image = self.image_bridge(image_experts, images, texts, text_mask)
        return self.text(text, image, text_mask, None), self.image(image, text, None, text_mask)


class CrossModalEncoder(nn.Module):
    """All layers. May be compiled as a whole, `model.cross_modal.compile()`, or layer by layer.

    A layer is given no more states of those before than its bridges read, so that those of layers 2 to L_C are alike
    and compiled once; SAM's take one more each.
    """

    def __init__(self, config: TwoTowerConfig):
        super().__init__()
        self.num_previous = config.num_previous
        self.layers = nn.ModuleList(CrossModalLayer(config, number + 1) for number in range(config.cross_modal_layers))

    def forward(
        self, text_experts: torch.Tensor, image_experts: torch.Tensor, text_mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The last layer's C of text (B, L, D) and of image (B, P, D).

        text_experts: (N, B, L, D). image_experts: (N, B, P, D), none of whose tokens is padding. text_mask:
        (B, 1, 1, L), False at padding; None where there is none.
        """
        texts: list[torch.Tensor] = []
        images: list[torch.Tensor] = []
        for layer in self.layers:
            text, image = layer(text_experts, image_experts, texts, images, text_mask)
            texts = [*texts, text][-self.num_previous :]
            images = [*images, image][-self.num_previous :]
        return texts[-1], images[-1]
