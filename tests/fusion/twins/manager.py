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
CASES = {
    "manager": Case(STATIC, ManagerTwin, neutral=STATIC),
    "manager adaptive": Case(ADAPTIVE, ManagerTwin, neutral=ADAPTIVE, uncounted=0.1),
}
