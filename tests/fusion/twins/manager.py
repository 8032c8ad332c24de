"""Managers from Equations 12 to 14: h <- h + sum_i W_i * (P(V_i) + e_i) before layers 0, 2 and 4, of states 3 and 4.

An adaptive manager's weights are those that each token asks for: see tests.mllm.slow_model.delta.
"""

import torch

from llava.fusion.configs.manager import ManagerConfig
from tests.fusion.twins.twin import Case, Twin
from tests.mllm.slow_model import delta


class ManagerTwin(Twin):
    """Of states 3 and 4 of a tower of 4 layers, every second of 6 layers of the language model."""

    def features(self, states):
        """P(V_i) + e_i."""
        return [self.project(states[layer]) + self.fusion.layer_embedding[layer - 3] for layer in (3, 4)]

    def newlines(self):
        """The plain newline in every map, without embedding."""
        return [self.newline] * 2

    def before(self, layer, hidden, shown):
        """A sum over the maps at every visual token."""
        if layer not in (0, 2, 4):
            return hidden
        manager, after = self.fusion.managers[layer // 2], hidden.clone()
        for one in shown:
            asked = hidden[one.question] if one.question else torch.stack([hidden[place] for place in one.places])
            for place, maps in zip(one.places, one.packed, strict=True):
                after[place] += delta(manager, maps, hidden[place], asked)
        return after


STATIC, ADAPTIVE = (ManagerConfig(interval=2, jitter="none", query=query) for query in (None, "cross"))
# A crop: 16 tokens of 24 channels, 2 maps, and 3 managers, or the first of them; weights train, or what makes the maps.
# A token: 2 managers add up 2 maps of 24 channels; hidden states choose the weights, a layer embedding is in the maps.
ADAPTIVE_SUMS = {
    "crop": (1536, 2 * 1536, 2 * 1536, 2 * 1536, 3 * 1536, 1536, 3 * 1536),
    "visual_token": (192, 3 * 192, 3 * 192, 3 * 192, 3 * 192, 2 * 192, 3 * 192),
}
STATIC_SUMS = {"crop": tuple(3 * operations for operations in ADAPTIVE_SUMS["crop"])}
CASES = {
    "manager": Case(STATIC, ManagerTwin, neutral=STATIC, sums=STATIC_SUMS),
    "manager adaptive": Case(ADAPTIVE, ManagerTwin, neutral=ADAPTIVE, sums=ADAPTIVE_SUMS),
}
