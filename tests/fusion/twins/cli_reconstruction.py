"""Cross-Layer Injection from what it was taken for: see the equations of llava/fusion/cli_reconstruction.py."""

import torch

from llava.fusion.configs.cli_reconstruction import CliReconstructionConfig
from tests.fusion.twins.twin import Case, Twin, gelu, linear


def sigmoid(number):
    """1 / (1 + e^-x)"""
    return 1 / (1 + torch.exp(-torch.as_tensor(number)))


class CliReconstructionTwin(Twin):
    """Of states 2 and 4 of a tower of 4 layers, before layers 0 and 4 of 6."""

    def features(self, states):
        """V'_k = P(V_k) + B_k A_k V_k."""
        corrections = zip((2, 4), self.fusion.corrections, strict=True)
        return [self.project(states[k]) + states[k] @ one.down.weight.T @ one.up.weight.T for k, one in corrections]

    def newlines(self):
        """What they are in the sequence, in every map."""
        return [self.newline] * 2

    def before(self, layer, hidden, shown):
        """h <- h + sum_k g_k V'_k, g_k of a whole image."""
        if layer not in (0, 4):
            return hidden
        gate, after = self.fusion.gates[layer // 4], hidden.clone()
        for one in shown:
            mean = sum(hidden[place] for place in one.places) / len(one.places)
            for k in (0, 1):
                maps = [packed[k] for packed in one.packed]
                weights = [torch.exp(gate.queries[k] @ vector / len(mean) ** 0.5) for vector in maps]
                summary = sum(weight * vector for weight, vector in zip(weights, maps)) / sum(weights)
                opened = linear(gate.linear_2, gelu(linear(gate.linear_1, torch.cat([summary, mean]))))
                for place, vector in zip(one.places, maps, strict=True):
                    after[place] += (sigmoid(opened - 2) - sigmoid(-2.0)) * vector
        return after


SMALL = CliReconstructionConfig(rank=5)
# A token: 2 gates add up 2 states of 24 channels. Gates are made of hidden states, V' of all but the language model.
SUMS = {"visual_token": (192, 3 * 192, 3 * 192, 3 * 192, 3 * 192, 2 * 192, 3 * 192)}
CASES = {"cli_reconstruction": Case(SMALL, CliReconstructionTwin, neutral=SMALL, sums=SUMS)}
