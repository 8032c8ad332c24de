"""How much each manager takes from each vision layer.

A manager adds sum_i W_i * (map_i + e_i) to the visual tokens, W_i in R^D for vision layer i. W is learned and signed,
so that its mean over D says little; the mean of |W_i| says how much of the layer passes. An adaptive manager makes W_i
of every token: score_i(token) * gate_i. Of it, the mean over the visual tokens that were last computed is taken, too.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from llava.chat.weights_chart import ManagerWeights
from llava.fusion.aggregation import aggregations
from llava.fusion.managers import AdaptiveManager
from llava.fusion.visual_managers import VisualManagers
from llava.mllm import LlavaOVManagerForConditionalGeneration


class ScoreRecorder:
    """Remembers the scores of adaptive managers while the model runs: their means over tokens, and of their sizes."""

    def __init__(self, model: LlavaOVManagerForConditionalGeneration):
        self.scores: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._model = model

    @contextmanager
    def recording(self) -> Iterator[None]:
        """A context in which the scores of adaptive managers are recorded."""
        managers = self._model.model.fusion
        all_managers = managers.managers if isinstance(managers, VisualManagers) else ()
        adaptive = [(index, one) for index, one in enumerate(all_managers) if isinstance(one, AdaptiveManager)]
        hooks = [manager.controller.register_forward_hook(self._recorder(index)) for index, manager in adaptive]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _recorder(self, index: int) -> Callable:
        def record(module: torch.nn.Module, inputs: tuple, scores_VN: torch.Tensor) -> None:
            self.scores[index] = (scores_VN.float().mean(0), scores_VN.float().abs().mean(0))

        return record

    def weights(self) -> list[ManagerWeights]:
        """Of all managers, in the order of their layers; none for a model of another method."""
        managers = self._model.model.fusion
        if not isinstance(managers, VisualManagers):
            return []
        weights = []
        for index, one in enumerate(aggregations(managers)):
            sizes, means = one.weights.abs().mean(1), one.weights.mean(1)
            if one.adaptive and index in self.scores:  # |score * gate| = |score| * |gate|, so the means factor
                score_means, score_sizes = self.scores[index]
                sizes, means = sizes * score_sizes, means * score_means
            measured = not one.adaptive or index in self.scores
            values = (sizes.tolist(), means.tolist()) if measured else (None, None)
            kind = "adaptive" if one.adaptive else "static"
            weights.append(ManagerWeights(one.layer, kind, one.vision_layers, *values))
        return weights
