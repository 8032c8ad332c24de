"""How much each manager takes from each vision layer, in numbers and as bars of text.

A manager adds sum_i W_i * (map_i + e_i) to the visual tokens, W_i in R^D for vision layer i. W is learned and signed,
so that its mean over D says little; the mean of |W_i| says how much of the layer passes. An adaptive manager makes W_i
of every token: score_i(token) * gate_i. Of it, the mean over the visual tokens that were last computed is taken, too.
"""

from contextlib import contextmanager
from dataclasses import dataclass

import torch

from llava.managers import AdaptiveManager
from llava.mllm import LlavaOVManagerForConditionalGeneration

BAR = 4  # characters
CELL = BAR + 9  # bar, blank, number, two blanks
EIGHTHS = " ▏▎▍▌▋▊▉█"


@dataclass(frozen=True)
class ManagerWeights:
    """Of one manager. layer: it adds before this layer of the language model. vision_layers: those it takes from.

    sizes: mean |W_i|, one for each vision layer; None for an adaptive manager that has seen no image yet. means: mean
    W_i.
    """

    layer: int
    kind: str
    vision_layers: tuple[int, ...]
    sizes: list[float] | None
    means: list[float] | None


class ScoreRecorder:
    """Remembers the scores of adaptive managers while the model runs: their means over tokens, and of their sizes."""

    def __init__(self, model: LlavaOVManagerForConditionalGeneration):
        self.scores: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._model = model

    @contextmanager
    def recording(self):
        managers = self._model.model.managers
        adaptive = (
            []
            if managers is None
            else [
                (index, manager)
                for index, manager in enumerate(managers.managers)
                if isinstance(manager, AdaptiveManager)
            ]
        )
        hooks = [manager.controller.register_forward_hook(self._recorder(index)) for index, manager in adaptive]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _recorder(self, index: int):
        def record(module, inputs, scores_VN) -> None:
            self.scores[index] = (scores_VN.float().mean(0), scores_VN.float().abs().mean(0))

        return record

    def weights(self) -> list[ManagerWeights]:
        """Of all managers, in the order of their layers; none for a model without."""
        managers = self._model.model.managers
        if managers is None:
            return []
        found = []
        for index, (layer, manager) in enumerate(zip(managers.config.injection_layers, managers.managers)):
            adaptive = isinstance(manager, AdaptiveManager)
            weights_ND = (manager.gate if adaptive else manager.scores).detach().float()
            sizes, means = weights_ND.abs().mean(1), weights_ND.mean(1)
            if adaptive and index in self.scores:  # |score * gate| = |score| * |gate|, so the means factor
                score_means, score_sizes = self.scores[index]
                sizes, means = sizes * score_sizes, means * score_means
            known = not adaptive or index in self.scores
            layers = managers.config.vision_layers[: len(weights_ND)]
            values = (sizes.tolist(), means.tolist()) if known else (None, None)
            found.append(ManagerWeights(layer, "adaptive" if adaptive else "static", layers, *values))
        return found


def chart(weights: list[ManagerWeights], width: int, plain: bool = False) -> str:
    """A row for each vision layer, a column for each manager, as many beside each other as `width` characters allow.

    All bars have one scale. plain: bars of ASCII.
    """
    if not weights:
        return "this model has no managers"
    known = [manager for manager in weights if manager.sizes is not None]
    largest = max((size for manager in known for size in manager.sizes), default=0.0)
    rows = sorted({layer for manager in weights for layer in manager.vision_layers})
    label = max(len(f"V{layer}") for layer in rows) + 2
    columns = max((width - label) // CELL, 1)
    lines = ["managers: mean |W| by vision layer, before each managed layer of the language model"]
    for first in range(0, len(weights), columns):
        group = weights[first : first + columns]
        lines.append("")
        lines.append(" " * label + "".join(f"{f'layer {manager.layer}':<{CELL}}" for manager in group).rstrip())
        lines.append(" " * label + "".join(f"{manager.kind:<{CELL}}" for manager in group).rstrip())
        for layer in rows:
            cells = [_cell(manager, layer, largest, plain) for manager in group]
            lines.append(f"{f'V{layer}':<{label}}{''.join(cells)}".rstrip())
    if len(known) < len(weights):
        lines += ["", "?: adaptive, decides when it sees an image"]
    return "\n".join(lines)


def _cell(manager: ManagerWeights, layer: int, largest: float, plain: bool) -> str:
    if layer not in manager.vision_layers:
        text = ""
    elif manager.sizes is None:
        text = "?"
    else:
        size = manager.sizes[manager.vision_layers.index(layer)]
        text = f"{_bar(size / largest if largest else 0.0, plain):<{BAR}} {size:.4f}"
    return f"{text:<{CELL}}"


def _bar(share: float, plain: bool) -> str:
    if plain:
        return "#" * round(share * BAR)
    whole, rest = divmod(round(share * BAR * 8), 8)
    return EIGHTHS[8] * whole + EIGHTHS[rest] * bool(rest)
