"""deepstack_qwen3 from its equation: h <- h + M_j(V_j) after layers 0, 1 and 2; M_j = LN, Linear, GELU, Linear."""

from llava.fusion.configs.deepstack_qwen3 import DeepstackQwen3Config
from tests.fusion.twins.twin import Case, Twin, add_at, gelu, layer_norm, linear


class DeepstackQwen3Twin(Twin):
    """Of states 1, 3 and 4 of a tower of 4 layers."""

    def features(self, states):
        """M_j of each."""
        return [
            linear(merger.linear_2, gelu(linear(merger.linear_1, layer_norm(merger.norm, states[layer]))))
            for merger, layer in zip(self.fusion.mergers, (1, 3, 4), strict=True)
        ]

    def before(self, layer, hidden, shown):
        """After layer i is before i + 1."""
        return add_at(hidden, shown, layer - 1) if layer in (1, 2, 3) else hidden


ZERO = DeepstackQwen3Config(initialisation="zero")
CASES = {"deepstack_qwen3": Case(DeepstackQwen3Config(), DeepstackQwen3Twin, neutral=ZERO)}
