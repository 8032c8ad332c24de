"""igva from its equations: [V_L ; sum_k w_k F_k], F_1 = V_1, F_2 = mean(V_2 .. V_4), w of the question's attention."""

import torch

from llava.fusion.configs.igva import IgvaConfig
from tests.fusion.twins.twin import Case, Twin, layer_norm, linear


class IgvaTwin(Twin):
    """Two groups, one query, one head at a time."""

    def visual_input(self, states, question):
        """(T, 64)"""
        groups = [states[1], (states[2] + states[3] + states[4]) / 3]
        weights = [0.5, 0.5]
        if len(question) and self.config.aggregator == "question":
            weights = self.weights(sum(question) / len(question), [group.mean(0) for group in groups])
        total = sum(weight * group for weight, group in zip(weights, groups, strict=True))
        return torch.cat([states[4], total], 1)

    def weights(self, question, pooled):
        """softmax of a linear layer of the last block's output."""
        aggregator = self.fusion.aggregator
        asking = linear(aggregator.question_proj, question)
        pooled = [linear(aggregator.group_proj, one) for one in pooled]
        for block in aggregator.blocks:
            query, attended = linear(block.q_proj, asking), []
            keys, values = ([linear(one, vector) for vector in pooled] for one in (block.k_proj, block.v_proj))
            for head in (slice(0, 4), slice(4, 8)):
                scores = torch.stack([query[head] @ key[head] / 4**0.5 for key in keys]).exp()
                attended.append(sum(score * value[head] for score, value in zip(scores / scores.sum(), values)))
            asking = layer_norm(block.norm_1, asking + linear(block.o_proj, torch.cat(attended)))
            inside = linear(block.linear_1, asking).clamp(min=0)
            asking = layer_norm(block.norm_2, asking + linear(block.linear_2, inside))
        scores = linear(aggregator.weigh, asking).exp()
        return scores / scores.sum()


SIZES = {"groups": (1, 4), "heads": 2, "head_width": 4, "blocks": 2}
OWN, ZERO = IgvaConfig(**SIZES), IgvaConfig(**SIZES, initialisation="zero")
# 4 states of 16 tokens of 32 channels; weights are made of the question's embeddings and of the states, too.
SUMS = {"crop": (4096, 3 * 4096, 4096, 2 * 4096, 2 * 4096, 2 * 4096, 3 * 4096)}
CASES = {"igva": Case(OWN, IgvaTwin, neutral=ZERO, sums=SUMS)}
