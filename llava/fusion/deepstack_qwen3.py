"""DeepStack as Qwen3-VL has it (arXiv 2511.21631): states of three depths of the tower, each through an MLP of its own.

    h <- h + M_j(V_j)        before layer j of the language model, at visual positions; M_j = LN, Linear, GELU, Linear

There each M_j first joins 2 x 2 neighbours, as its projector does; here neither does. What it gives is packed as the
visual tokens are; a newline, which there is none of, receives nothing.

Shapes: C crops, T tokens per crop, D width of the tower's states, H of the language model's.
"""

import torch
from torch import nn

from llava.fusion.base import (
    STATES,
    WEIGHTS,
    Context,
    Crops,
    Fusion,
    FusionCost,
    Linear,
    Packable,
    Product,
    ZeroLinear,
    like_weight,
)
from llava.fusion.config import Sizes
from llava.fusion.configs.deepstack_qwen3 import DeepstackQwen3Config
from llava.fusion.layers import named


class Merger(nn.Module):
    """One M_j, drawn as torch draws linear layers and norms, or with a last matrix that begins at zero."""

    def __init__(self, vision_width: int, text_width: int, begins_at_zero: bool):
        super().__init__()
        self.norm = nn.LayerNorm(vision_width, eps=1e-6)
        self.linear_1 = Linear(vision_width, vision_width)
        self.act = nn.GELU()
        self.linear_2 = (ZeroLinear if begins_at_zero else Linear)(vision_width, text_width)

    def forward(self, state_CTD: torch.Tensor) -> torch.Tensor:
        """(C, T, D) to (C, T, H)."""
        state_CTD = like_weight(state_CTD, self.linear_1.weight)
        return self.linear_2(self.act(self.linear_1(self.norm(state_CTD))))


class DeepstackQwen3(Fusion[DeepstackQwen3Config, int]):
    """One merger for each of the tower's states, in their order."""

    def __init__(self, config: DeepstackQwen3Config, sizes: Sizes):
        super().__init__(config, sizes)
        self.vision_layers, self.injection_layers = named(config.vision_layers), named(config.injection_layers)
        self.mergers = nn.ModuleList(
            Merger(sizes.vision_width, sizes.text_width, config.initialisation == "zero") for _ in self.vision_layers
        )

    @classmethod
    def cost(cls, config: DeepstackQwen3Config, sizes: Sizes) -> FusionCost:
        """Two products a merger, both behind weights, the norm's; kept is what norm, matrices and GELU give."""
        vision, text = sizes.vision_width, sizes.text_width
        tokens = len(named(config.vision_layers)) * sizes.crop_tokens
        return FusionCost(
            products=(Product(2 * tokens * vision * (vision + text), (WEIGHTS, WEIGHTS | STATES)),),
            kept=tokens * (3 * vision + text),
            first_layer=named(config.injection_layers)[0],
        )

    @property
    def packed_keys(self) -> tuple[int, ...]:
        """The layers of the language model that are added before."""
        return self.injection_layers

    def to_pack(self, crops: Crops) -> dict[int, Packable]:
        """Each merger's features."""
        packables = []
        for merger, layer in zip(self.mergers, self.vision_layers, strict=True):
            features_CTH = merger(crops.states[layer])
            packables.append(Packable(features_CTH, features_CTH.new_zeros(crops.num_samples, features_CTH.shape[-1])))
        return dict(zip(self.packed_keys, packables, strict=True))

    def deltas(self, packed: dict[int, torch.Tensor], context: Context) -> dict[int, torch.Tensor]:
        """What was packed, as it is."""
        return packed
