"""layer_select from its equation: h <- h + P_k(V_k) before layer floor(k N / L) - 1; P_k = Linear, GELU, Linear."""

from llava.fusion.configs.layer_select import LayerSelectConfig
from tests.fusion.twins.twin import Case, Twin, add_at, gelu, linear


class LayerSelectTwin(Twin):
    """Of states 0, 3 and 4 of a tower of 4 layers, before layers 0, 3 and 5 of 6."""

    def features(self, states):
        """P_k of each."""
        return [
            linear(one.linear_2, gelu(linear(one.linear_1, states[layer])))
            for one, layer in zip(self.fusion.projectors, (0, 3, 4), strict=True)
        ]

    def before(self, layer, hidden, shown):
        """The state that belongs to the layer."""
        layers = [0, 3, 5] if self.config.mapping == "shallow_to_early" else [5, 3, 0]
        return add_at(hidden, shown, layers.index(layer)) if layer in layers else hidden


CASES = {"layer_select": Case(LayerSelectConfig(), LayerSelectTwin, neutral=LayerSelectConfig(initialisation="zero"))}
