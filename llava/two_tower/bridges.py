"""What each cross-modal layer gets of a tower's layers: ManagerTower's managers, BridgeTower's links, METER's nothing.

All are called alike, see Manager.forward in llava/two_tower/managers.py.
"""

import torch
from torch import nn

from llava.two_tower.configuration import TwoTowerConfig
from llava.two_tower.managers import make_manager


class Link(nn.Module):
    """BridgeTower's: LN(expert of this layer + C_{l-1}), without C in layer 1. index: of the expert, from 0."""

    def __init__(self, config: TwoTowerConfig, index: int):
        super().__init__()
        self.index = index
        self.norm = nn.LayerNorm(config.hidden_size)

    def forward(self, experts_NBLD: torch.Tensor, previous: list[torch.Tensor], *_: object) -> torch.Tensor:
        """(B, L, D)."""
        states = experts_NBLD[self.index]
        return self.norm(states + previous[-1] if previous else states)


class PassOn(nn.Module):
    """METER's: the tower's last layer enters layer 1, and every other layer gets what the one before it made."""

    def forward(self, experts_NBLD: torch.Tensor, previous: list[torch.Tensor], *_: object) -> torch.Tensor:
        """(B, L, D)."""
        return previous[-1] if previous else experts_NBLD[-1]


class LayerGate(nn.Module):
    """METER's gated fusion: v_L + sum_{i<L} softmax_i(G v_i) v_i, elementwise, over all layers of a tower."""

    def __init__(self, width: int):
        super().__init__()
        self.gate = nn.Linear(width, width)

    def forward(self, layers: list[torch.Tensor]) -> torch.Tensor:
        """layers: (B, L, W) each, all of a tower's. Returns (B, L, W)."""
        lower = torch.stack(layers[:-1])
        return layers[-1] + (self.gate(lower).softmax(0) * lower).sum(0)


def make_bridge(config: TwoTowerConfig, tower: str, layer: int) -> nn.Module:
    """The bridge before cross-modal layer `layer`, from 1. tower: `text` or `image`."""
    if config.bridge == "manager":
        return make_manager(config, config.num_kept(tower), layer)
    return Link(config, layer - 1) if config.bridge == "bridge_tower" else PassOn()
