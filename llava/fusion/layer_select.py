"""Internal direct fusion, I_D of "Multi-Layer Visual Feature Fusion in Multimodal LLMs" (arXiv 2503.06063, section 3).

    h <- h + P_k(V_k)        before layer floor(k N / L) - 1 of the language model, at visual positions

of N layers, for state k of a tower of L; P_k = Linear, GELU, Linear, each state's own. The published code adds to the
first image of a batch; here all images and videos receive theirs. What P_k gives is packed as the visual tokens are; a
newline receives nothing.

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
from llava.fusion.configs.layer_select import LayerSelectConfig
from llava.fusion.layers import named


class StateProjector(nn.Module):
    """One P_k, drawn as the model's projector is, or with a last matrix that begins at zero."""

    def __init__(self, vision_width: int, text_width: int, begins_at_zero: bool):
        super().__init__()
        self.linear_1 = Linear(vision_width, text_width)
        self.act = nn.GELU()
        self.linear_2 = (ZeroLinear if begins_at_zero else Linear)(text_width, text_width)

    def forward(self, state_CTD: torch.Tensor) -> torch.Tensor:
        """(C, T, D) to (C, T, H)."""
        state_CTD = like_weight(state_CTD, self.linear_1.weight)
        return self.linear_2(self.act(self.linear_1(state_CTD)))


class LayerSelect(Fusion[LayerSelectConfig, int]):
    """One projector for each of the tower's states, in their order."""

    def __init__(self, config: LayerSelectConfig, sizes: Sizes):
        super().__init__(config, sizes)
        self.vision_layers = named(config.vision_layers)
        self.projectors = nn.ModuleList(
            StateProjector(sizes.vision_width, sizes.text_width, config.initialisation == "zero")
            for _ in self.vision_layers
        )

    @classmethod
    def cost(cls, config: LayerSelectConfig, sizes: Sizes) -> FusionCost:
        """Two products a projector, the first with a state; kept is what the matrices and GELU give."""
        vision, text = sizes.vision_width, sizes.text_width
        tokens = len(named(config.vision_layers)) * sizes.crop_tokens
        return FusionCost(
            products=(
                Product(2 * tokens * vision * text, (WEIGHTS, STATES)),
                Product(2 * tokens * text**2, (WEIGHTS, WEIGHTS | STATES)),
            ),
            kept=tokens * 3 * text,
            first_layer=min(config.places),
        )

    @property
    def packed_keys(self) -> tuple[int, ...]:
        """The layers of the language model that are added before, in the order of the states."""
        return self.config.places

    def to_pack(self, crops: Crops) -> dict[int, Packable]:
        """Each projector's features."""
        packables = []
        for projector, layer in zip(self.projectors, self.vision_layers, strict=True):
            features_CTH = projector(crops.states[layer])
            packables.append(Packable(features_CTH, features_CTH.new_zeros(crops.num_samples, features_CTH.shape[-1])))
        return dict(zip(self.packed_keys, packables, strict=True))

    def deltas(self, packed: dict[int, torch.Tensor], context: Context) -> dict[int, torch.Tensor]:
        """What was packed, as it is."""
        return packed
