"""Gated cross-attention: the block of Flamingo (arXiv 2204.14198, section 2.2) with the parts of Llama-3.2-Vision's.

    F = Linear([V_L ; V_a ; ...])
    h <- h + tanh(a) CA(LN h, F),  h <- h + tanh(b) MLP(LN h)        before every fourth layer; a = b = 0 at the start

LN is the language model's RMS norm, CA attention with its numbers of heads (keys and values of fewer), MLP its SwiGLU,
none with a bias. As in Llama-3.2-Vision, an RMS norm of each head's queries and keys keeps scores small however large
the tower's states are. In both papers the text's tokens attend, and the sequence holds no visual tokens. Here the
sequence keeps them, and, as with every deep method, h are the visual positions alone: each attends to all packed tokens
of its own image or video, in no order. A newline attends, too, and as a key it carries the plain newline vector, as in
the managers' maps.

Shapes: C crops, T tokens per crop, D width of the tower's states, H of the language model's, V visual tokens.
"""

from functools import partial

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention, silu
from transformers import initialization as init
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm

from llava.fusion.base import (
    HIDDEN,
    STATES,
    WEIGHTS,
    Context,
    Crops,
    Delta,
    Fusion,
    FusionCost,
    Linear,
    Packable,
    Product,
    SelfInitialised,
    like_weight,
)
from llava.fusion.config import Sizes
from llava.fusion.configs.cross_attention import CrossAttentionConfig
from llava.fusion.layers import named


class Features(nn.Module):
    """F, of states side by side."""

    def __init__(self, vision_width: int, num_states: int, text_width: int):
        super().__init__()
        self.linear = Linear(num_states * vision_width, text_width)

    def forward(self, states: list[torch.Tensor]) -> torch.Tensor:
        """Each (C, T, D), to (C, T, H)."""
        return self.linear(like_weight(torch.cat(states, dim=-1), self.linear.weight))


class CrossAttentionBlock(SelfInitialised):
    """What stands before one layer of the language model. Matrices are drawn as torch draws linear layers."""

    def __init__(self, width: int, heads: int, key_value_heads: int, mlp_width: int):
        super().__init__()
        self.heads, self.key_value_heads = heads, key_value_heads
        head_width = width // heads
        key_width = head_width * key_value_heads
        self.attention_norm = Qwen2RMSNorm(width, eps=1e-6)
        self.q_proj = Linear(width, width, bias=False)
        self.k_proj = Linear(width, key_width, bias=False)
        self.v_proj = Linear(width, key_width, bias=False)
        self.q_norm, self.k_norm = Qwen2RMSNorm(head_width, eps=1e-6), Qwen2RMSNorm(head_width, eps=1e-6)
        self.o_proj = Linear(width, width, bias=False)
        self.attention_gate = nn.Parameter(torch.zeros(1))  # a
        self.mlp_norm = Qwen2RMSNorm(width, eps=1e-6)
        self.gate_proj = Linear(width, mlp_width, bias=False)
        self.up_proj = Linear(width, mlp_width, bias=False)
        self.down_proj = Linear(mlp_width, width, bias=False)
        self.mlp_gate = nn.Parameter(torch.zeros(1))  # b

    def initialise(self) -> None:
        """Both gates shut."""
        init.zeros_(self.attention_gate)
        init.zeros_(self.mlp_gate)

    def forward(self, visual_VH: torch.Tensor, features_VH: torch.Tensor, lengths: list[int]) -> torch.Tensor:
        """What is added at the V tokens of all images of a batch, (V, H).

        visual_VH: their hidden states. features_VH: F, packed. lengths: tokens of each image.
        """
        visual_VH, features_VH = (like_weight(given, self.q_proj.weight) for given in (visual_VH, features_VH))
        queries = self.q_norm(self.q_proj(self.attention_norm(visual_VH)).unflatten(1, (self.heads, -1)))
        keys = self.k_norm(self.k_proj(features_VH).unflatten(1, (self.key_value_heads, -1)))
        values = self.v_proj(features_VH).unflatten(1, (self.key_value_heads, -1))
        images = zip(*(states.split(lengths) for states in (queries, keys, values.to(keys))), strict=True)
        attended = torch.cat([self._attend(*image) for image in images])
        delta_VH = self.attention_gate.tanh() * self.o_proj(attended)
        normed = self.mlp_norm(visual_VH + delta_VH)
        return delta_VH + self.mlp_gate.tanh() * self.down_proj(silu(self.gate_proj(normed)) * self.up_proj(normed))

    def _attend(self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """Of one image of n tokens: queries (n, heads, width), keys and values (n, fewer heads, width), to (n, H)."""
        if not len(queries):  # a micro-batch without images: keys and values take part with a gradient of zero
            return (queries + keys.sum() + values.sum()).flatten(1)
        # Repeated, as not every fused kernel takes fewer heads of keys, and the others hold all scores.
        shared = self.heads // self.key_value_heads
        keys, values = keys.repeat_interleave(shared, dim=1), values.repeat_interleave(shared, dim=1)
        q, k, v = (states.transpose(0, 1)[None] for states in (queries, keys, values))
        return scaled_dot_product_attention(q, k, v)[0].transpose(0, 1).flatten(1)


class CrossAttention(Fusion[CrossAttentionConfig, str]):
    """F, packed once, and a block for each of the language model's layers that have one."""

    def __init__(self, config: CrossAttentionConfig, sizes: Sizes):
        super().__init__(config, sizes)
        self.injection_layers = named(config.injection_layers)
        self.features = Features(sizes.vision_width, len(self.layers), sizes.text_width)
        self.blocks = nn.ModuleList(
            CrossAttentionBlock(sizes.text_width, sizes.text_heads, sizes.text_key_value_heads, sizes.text_mlp_width)
            for _ in self.injection_layers
        )

    @classmethod
    def cost(cls, config: CrossAttentionConfig, sizes: Sizes) -> FusionCost:
        """F of a crop; inside the language model a block's matrices, and attention of an image with itself."""
        width, blocks = sizes.text_width, len(named(config.injection_layers))
        key_width = width // sizes.text_heads * sizes.text_key_value_heads
        states = len(config.tower_layers(sizes.vision_layers))
        features = WEIGHTS | STATES | {"newline"}
        return FusionCost(
            products=(
                Product(2 * sizes.crop_tokens * states * sizes.vision_width * width, (WEIGHTS, STATES)),
                Product(blocks * 2 * width * (2 * width + 3 * sizes.text_mlp_width), (WEIGHTS, HIDDEN), "visual_token"),
                Product(blocks * 2 * width * 2 * key_width, (WEIGHTS, features), "visual_token"),
                Product(blocks * 4 * width, (HIDDEN, features), "visual_pair"),
            ),
            kept=sizes.crop_tokens * width,
            kept_of_token=blocks * (12 * width + 4 * sizes.text_mlp_width),
            first_layer=named(config.injection_layers)[0],
        )

    @property
    def packed_keys(self) -> tuple[str, ...]:
        """F alone."""
        return ("features",)

    def to_pack(self, crops: Crops) -> dict[str, Packable]:
        """F of all crops; at newlines the newline."""
        features_CTH = self.features([crops.states[layer] for layer in self.layers])
        return {"features": Packable(features_CTH, crops.newline.expand(crops.num_samples, -1))}

    def deltas(self, packed: dict[str, torch.Tensor], context: Context) -> dict[int, Delta]:
        """Each block's, made of the hidden states before its layer."""

        def added(number: int, hidden_states: torch.Tensor) -> torch.Tensor:
            visual_VH = hidden_states.index_select(0, context.positions.to(hidden_states.device))
            return self.blocks[number](visual_VH, packed["features"], context.lengths)

        return {layer: partial(added, number) for number, layer in enumerate(self.injection_layers)}
