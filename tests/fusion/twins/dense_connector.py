"""concat, sci and dci from their equations, of a tower of 4 layers: x = P'([V_4 ; ...])."""

import torch

from llava.fusion.configs.dense_connector import ConcatConfig, DciConfig, SciConfig
from tests.fusion.twins.twin import Case, Twin


class ConcatTwin(Twin):
    """[V_4 ; V_1 ; V_3]."""

    def visual_input(self, states, question):
        """Channel by channel."""
        return torch.cat([states[4], states[1], states[3]], 1)


class SciTwin(Twin):
    """[V_4 ; V_1 ; V_2]: of 26 layers the 8th and the 16th."""

    def visual_input(self, states, question):
        """Channel by channel."""
        return torch.cat([states[4], states[1], states[2]], 1)


class DciTwin(Twin):
    """[V_4 ; mean(V_0, V_1) ; mean(V_2, V_3)]."""

    def visual_input(self, states, question):
        """Channel by channel."""
        return torch.cat([states[4], (states[0] + states[1]) / 2, (states[2] + states[3]) / 2], 1)


class DciWithoutEmbeddingsTwin(Twin):
    """[V_4 ; V_1 ; mean(V_2, V_3)]."""

    def visual_input(self, states, question):
        """Channel by channel."""
        return torch.cat([states[4], states[1], (states[2] + states[3]) / 2], 1)


CASES = {
    "concat": Case(
        ConcatConfig(vision_layers=(1, 3)), ConcatTwin, neutral=ConcatConfig(vision_layers=(-2,), initialisation="zero")
    ),
    "sci": Case(SciConfig(), SciTwin, neutral=SciConfig(initialisation="zero")),
    "dci": Case(DciConfig(), DciTwin, neutral=DciConfig(initialisation="zero")),
    "dci without embeddings": Case(DciConfig(embeddings="left_out"), DciWithoutEmbeddingsTwin),
}
