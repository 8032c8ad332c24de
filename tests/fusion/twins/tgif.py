"""tgif from its equation: LN(V_L + sum_l w_l V_l), w = softmax(W2 ReLU(W1 q)), q the question's mean embedding."""

import torch

from llava.fusion.configs.tgif import TgifConfig
from tests.fusion.twins.twin import Case, Twin, layer_norm, linear


class TgifTwin(Twin):
    """Of states 1 to 4."""

    def visual_input(self, states, question):
        """One patch at a time; a question of nothing is zero."""
        mean = sum(question) / len(question) if len(question) else torch.zeros(24)
        scores = linear(self.fusion.router.linear_2, linear(self.fusion.router.linear_1, mean).clamp(min=0)).exp()
        patches = []
        for patch, last in enumerate(states[4]):
            total = last
            for layer in (1, 2, 3, 4):
                total = total + scores[layer - 1] / scores.sum() * states[layer][patch]
            normed = layer_norm(self.fusion.norm, total)
            patches.append(last + normed if self.config.initialisation == "zero" else normed)
        return torch.stack(patches)


OWN, ZERO = TgifConfig(), TgifConfig(initialisation="zero")
# 4 states of 16 tokens of 32 channels; weights are made of the question's embeddings, which the language model has.
SUMS = {"crop": (4096, 2 * 4096, 4096, 2 * 4096, 2 * 4096, 2 * 4096, 3 * 4096)}
CASES = {"tgif": Case(OWN, TgifTwin, sums=SUMS), "tgif zero": Case(ZERO, TgifTwin, neutral=ZERO, sums=SUMS)}
