"""What a model's managers multiply their maps with, as it is learned."""

from dataclasses import dataclass

import torch

from llava.fusion.layers import named
from llava.fusion.managers import AdaptiveManager
from llava.fusion.visual_managers import VisualManagers


@dataclass(frozen=True)
class Aggregation:
    """One manager: delta = sum_i W_i * map_i, adaptive: W_i = score_i(token) * gate_i.

    layer: of the language model, before which it adds. vision_layers: the N states of the tower that it takes from.
    weights: (N, D), W of a static manager, the gates of an adaptive one, float32.
    """

    layer: int
    adaptive: bool
    vision_layers: tuple[int, ...]
    weights: torch.Tensor


def aggregations(managers: VisualManagers) -> list[Aggregation]:
    """Of all managers, in the order of their layers; of the control `maps: last` one map, with the sum of all W."""
    config, states = managers.config, named(managers.config.vision_layers)
    aggregated = []
    for layer, manager in zip(managers.injection_layers, managers.managers, strict=True):
        adaptive = isinstance(manager, AdaptiveManager)
        weights = manager.get_parameter("gate" if adaptive else "scores").detach().float()
        layers = tuple(states[row] for row in config.rows(layer))
        if config.maps == "last":
            weights, layers = weights.sum(0, keepdim=True), states[-1:]
        aggregated.append(Aggregation(layer, adaptive, layers, weights))
    return aggregated
