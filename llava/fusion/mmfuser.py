"""MMFuser (arXiv 2410.11829, section 3): the visual input asks lower states of the tower, and adds what it is answered.

    a = DeformAttn(LN V_L, LN [V_3, V_9, V_14, V_20])        of 26 layers
    a <- a + g2 * DeformAttn(LN a, LN a)
    x = P(V_L + g1 * a)                                      g1 = g2 = 0 at the start, a number each for every channel

Deformable attention is Deformable DETR's (arXiv 2010.04159, section 4.1): a head of a token looks at a few points of
each state's map, at offsets from its own place that a linear layer makes of the token, and sums what it finds there
with weights that another makes. Between tokens it is interpolated (bilinear), outside the map are zeros. The released
code has a CUDA operator for it, in float32; here it is torch's grid_sample, in float32, too: in bfloat16 the places of
27 x 27 tokens would be a tenth of a token off. Torch keeps what every head found; the operator would compute it again.

Shapes: C crops, T tokens of a crop, a square map of them, D width of the tower, N states, H heads, K points.
"""

import math

import torch
from torch import nn
from torch.nn.functional import grid_sample
from transformers import initialization as init

from llava.errors import LlavaError
from llava.fusion.base import STATES, WEIGHTS, Fusion, FusionCost, Linear, Product, SelfInitialised, like_weight
from llava.fusion.config import Sizes
from llava.fusion.configs.mmfuser import MmfuserConfig
from llava.fusion.layers import named


class XavierLinear(Linear):
    """Values and output begin uniform, without bias."""

    def initialise(self) -> None:
        """As Deformable DETR's."""
        init.xavier_uniform_(self.weight)
        init.zeros_(self.bias)


class ZeroLinear(Linear):
    """The attention's weights begin equal."""

    def initialise(self) -> None:
        """Zero."""
        init.zeros_(self.weight)
        init.zeros_(self.bias)


class RingLinear(Linear):
    """Offsets begin the same for every token: a direction for each head, point k at the distance k + 1."""

    def __init__(self, width: int, heads: int, levels: int, points: int):
        super().__init__(width, 2 * heads * levels * points)
        self.shape = (heads, levels, points)

    def initialise(self) -> None:
        """Directions around the circle, stretched to the square ring of tokens, as (x, y)."""
        heads, levels, points = self.shape
        angles = torch.arange(heads, dtype=torch.float32) * (2 * math.pi / heads)
        ring = torch.stack([angles.cos(), angles.sin()], -1)
        ring = ring / ring.abs().amax(-1, keepdim=True)
        steps = torch.arange(1, points + 1, dtype=torch.float32)
        offsets = ring[:, None, None] * steps[:, None]
        init.zeros_(self.weight)
        init.copy_(self.bias, offsets.expand(heads, levels, points, 2).reshape(-1))


class DeformableAttention(nn.Module):
    """Of tokens of a square map to N maps of the same size."""

    def __init__(self, width: int, levels: int, heads: int, points: int):
        super().__init__()
        self.shape = (heads, levels, points)
        self.offsets = RingLinear(width, heads, levels, points)
        self.weights = ZeroLinear(width, heads * levels * points)
        self.value = XavierLinear(width, width)
        self.output = XavierLinear(width, width)

    def forward(self, queries_CTD: torch.Tensor, maps_CND: torch.Tensor) -> torch.Tensor:
        """(C, T, D). maps_CND: (C, N * T, D), one map behind the other."""
        heads, levels, points = self.shape
        crops, tokens, width = queries_CTD.shape
        side = math.isqrt(tokens)
        values = self.value(maps_CND).float().unflatten(-1, (heads, -1)).unflatten(1, (levels, side, side))
        values = values.permute(0, 4, 1, 5, 2, 3).flatten(0, 1)  # (C * H, N, D / H, side, side)
        offsets = self.offsets(queries_CTD).float().unflatten(-1, (heads, levels, points, 2))
        offsets = offsets.permute(0, 2, 3, 1, 4, 5).flatten(0, 1)  # (C * H, N, T, K, 2)
        weights = self.weights(queries_CTD).float().unflatten(-1, (heads, -1)).softmax(-1)
        weights = weights.unflatten(-1, (levels, points)).permute(0, 2, 3, 1, 4).flatten(0, 1)  # (C * H, N, T, K)
        # grid_sample counts from -1 to 1 over the whole map, whose first token is the square from 0 to 1.
        x = torch.arange(side, device=offsets.device) + 0.5
        places = torch.stack(torch.meshgrid(x, x, indexing="ij")[::-1], -1).flatten(0, 1)[:, None]  # (T, 1, 2)
        attended = values.new_zeros(crops * heads, width // heads, tokens)
        for level in range(levels):
            grid = (places + offsets[:, level]) * (2 / side) - 1
            samples = grid_sample(values[:, level], grid, mode="bilinear", padding_mode="zeros", align_corners=False)
            attended = attended + (samples * weights[:, level, None]).sum(-1)
        joined = attended.unflatten(0, (crops, heads)).flatten(1, 2).transpose(1, 2)
        return self.output(joined.to(queries_CTD))


class Gate(SelfInitialised):
    """A factor for every channel."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))

    def initialise(self) -> None:
        """Zero: the model begins as the baseline."""
        init.zeros_(self.weight)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(..., D) to the same."""
        return features * self.weight


class Mmfuser(Fusion[MmfuserConfig, str]):
    """Both attentions, the norms in front of them, and the gates behind."""

    def __init__(self, config: MmfuserConfig, sizes: Sizes):
        super().__init__(config, sizes)
        width, self.vision_layers = sizes.vision_width, named(config.vision_layers)
        if width % config.heads:
            raise LlavaError(f"fusion.heads {config.heads} do not divide the tower's width {width}")
        self.query_norm = nn.LayerNorm(width, eps=1e-6)
        self.state_norm = nn.LayerNorm(width, eps=1e-6)
        self.cross_attention = DeformableAttention(width, len(self.vision_layers), config.heads, config.points)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.self_attention = DeformableAttention(width, 1, config.heads, config.points)
        self.gate_1, self.gate_2 = Gate(width), Gate(width)

    @classmethod
    def cost(cls, config: MmfuserConfig, sizes: Sizes) -> FusionCost:
        """Matrices behind norms; a sample of a channel is four products, and one with its weight.

        Kept are of each attention what was found, in float32, twice the size, and what its matrices give and are given.
        """
        tokens, width, seen = sizes.crop_tokens, sizes.vision_width, config.heads * config.points
        levels = len(named(config.vision_layers))
        maps, attentions = levels + 1, (levels, 1)
        asking = 3 * seen * maps  # two offsets and a weight each
        depends, matrices = WEIGHTS | STATES, asking + width * (maps + len(attentions))
        return FusionCost(
            products=(Product(2 * tokens * width * matrices, (WEIGHTS, depends)),),
            kept=tokens * (width * (2 * config.points * maps + 4 * maps + 6) + 2 * asking),
            before_projector=True,
            sums=(Product(2 * 5 * tokens * width * config.points * maps, (depends, depends)),),
        )

    def visual_input(self, states: dict[int, torch.Tensor]) -> torch.Tensor:
        """(C, T, D)."""
        maps_CND = like_weight(torch.cat([states[one] for one in self.vision_layers], 1), self.gate_1.weight)
        visual_CTD = like_weight(states[self.visual_layer], self.gate_1.weight)
        answer_CTD = self.cross_attention(self.query_norm(visual_CTD), self.state_norm(maps_CND))
        normed_CTD = self.norm(answer_CTD)
        answer_CTD = answer_CTD + self.gate_2(self.self_attention(normed_CTD, normed_CTD))
        return visual_CTD + self.gate_1(answer_CTD).to(visual_CTD.device)  # as accelerate has them on several
