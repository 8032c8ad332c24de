"""Gated cross-attention from its equation: h <- h + tanh(a) CA(LN h, F), h <- h + tanh(b) MLP(LN h)."""

import torch

from llava.fusion.configs.cross_attention import CrossAttentionConfig
from tests.fusion.twins.twin import Case, Twin, linear


def rms_norm(module, given: torch.Tensor) -> torch.Tensor:
    """x / sqrt(mean of x^2), scaled."""
    return given / (given.square().mean(-1, keepdim=True) + 1e-6).sqrt() * module.weight


class CrossAttentionTwin(Twin):
    """F of the states 4, 0, 1, 2 and 3 of a tower of 4 layers, before layers 0 and 4 of 6; 4 heads, 2 of keys."""

    def features(self, states):
        """F."""
        return [linear(self.fusion.features.linear, torch.cat([states[layer] for layer in (4, 0, 1, 2, 3)], -1))]

    def newlines(self):
        """As keys, what they are in the sequence."""
        return [self.newline]

    def before(self, layer, hidden, shown):
        """A block at every visual token, which attends to all of its own image."""
        if layer not in (0, 4):
            return hidden
        block, after = self.fusion.blocks[layer // 4], hidden.clone()
        for one in shown:
            features = torch.stack([packed[0] for packed in one.packed])
            keys, values = linear(block.k_proj, features), linear(block.v_proj, features)
            for place in one.places:
                h = hidden[place]
                attended = attention(block, rms_norm(block.attention_norm, h), keys, values)
                h = h + torch.tanh(block.attention_gate) * linear(block.o_proj, attended)
                normed = rms_norm(block.mlp_norm, h)
                gate = linear(block.gate_proj, normed)
                inner = gate / (1 + torch.exp(-gate)) * linear(block.up_proj, normed)
                after[place] = h + torch.tanh(block.mlp_gate) * linear(block.down_proj, inner)
        return after


def attention(block, state: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, heads: int = 4) -> torch.Tensor:
    """Of one token, head by head; two heads share keys and values."""
    query, width, found = linear(block.q_proj, state), len(state) // heads, []
    for head in range(heads):
        mine, theirs = (slice(number * width, (number + 1) * width) for number in (head, head // 2))
        asked = rms_norm(block.q_norm, query[mine])
        weights = torch.exp(rms_norm(block.k_norm, keys[:, theirs]) @ asked / width**0.5)
        found.append((weights[:, None] * values[:, theirs]).sum(0) / weights.sum())
    return torch.cat(found)


CASES = {"cross_attention": Case(CrossAttentionConfig(), CrossAttentionTwin, neutral=CrossAttentionConfig())}
