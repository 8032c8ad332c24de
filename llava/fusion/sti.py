"""Sparse token integration of DenseConnector (arXiv 2405.13800, section 3.2): more tokens of a crop, from lower states.

    x = P([V_L ; pool(V_a) ; pool(V_b)])        along tokens; pool is the mean of every 8 tokens, one row after another

Pools cross the ends of rows, as there, and the tokens behind the last whole pool are left out: of 729 the last one, so
that a crop has 729 + 2 x 91. P is the model's projector. The pooled tokens stand behind the crop's own and are tokens
as these are, so the model begins as another than the baseline, whatever its weights. Their place is behind one crop:
the unpadded map of tiles and the pooled frames of a video have none for them.

Shapes: C crops, T tokens per crop, D width of the tower's states.
"""

import torch

from llava.fusion.base import Fusion
from llava.fusion.configs.sti import StiConfig
from llava.fusion.layers import named


def pooled(state_CTD: torch.Tensor, size: int) -> torch.Tensor:
    """The mean of every `size` tokens, (C, T // size, D)."""
    whole = state_CTD.shape[1] // size
    return state_CTD[:, : whole * size].unflatten(1, (whole, size)).mean(2)


class Sti(Fusion[StiConfig, str]):
    """Pooled states behind the visual input; without weights."""

    def visual_input(self, states: dict[int, torch.Tensor]) -> torch.Tensor:
        """(C, T + extra tokens, D)."""
        extra = [pooled(states[layer], self.config.pool) for layer in named(self.config.vision_layers)]
        return torch.cat([states[self.visual_layer], *extra], dim=1)
