"""States of the tower beside each other, channel by channel: concat, and sci and dci of DenseConnector (2405.13800).

    concat, sci     x = P'([V_L ; V_a ; V_b ; ...])
    dci             x = P'([V_L ; mean(V_0 .. V_12) ; mean(V_13 .. V_25)])

P' is the model's projector, whose first matrix is as many times wider; there is no other weight. The visual input comes
first, so that the first columns of that matrix are those of the baseline (Molmo's order is the same, DenseConnector's
too). Nothing is normalised, here as there.
"""

import torch

from llava.fusion.base import Fusion
from llava.fusion.configs.dense_connector import ChannelsConfig


class DenseConnector(Fusion[ChannelsConfig, str]):
    """What it costs is the wider projector's; dci's means, a 30,000th of the tower, are no FusionCost.sums."""

    def visual_input(self, states: dict[int, torch.Tensor]) -> torch.Tensor:
        """The visual input, then each group's mean: (C, T, (1 + groups) * width)."""
        means = [_mean([states[layer] for layer in group]) for group in self.config.groups(self.visual_layer)]
        return torch.cat([states[self.visual_layer], *means], dim=-1)


def _mean(states: list[torch.Tensor]) -> torch.Tensor:
    """Without a copy of all of them, as a stack would be."""
    total = states[0]
    for state in states[1:]:
        total = total + state
    return total / len(states)
