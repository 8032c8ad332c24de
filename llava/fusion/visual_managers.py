"""The method `manager`: all managers of a model, and the layer embedding that they share. managers.py has one manager.

Shapes: C crops, T tokens per crop, D width of the language model, N selected vision layers, S samples, V visual tokens.
"""

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from transformers import initialization as init

from llava.fusion.base import (
    HIDDEN,
    PACKED,
    STATES,
    WEIGHTS,
    Context,
    Crops,
    Delta,
    Fusion,
    FusionCost,
    Packable,
    Product,
)
from llava.fusion.config import Sizes
from llava.fusion.configs.manager import ManagerConfig
from llava.fusion.layers import named
from llava.fusion.managers import AdaptiveManager, StaticManager

JITTER_RANGES = {"paper": (0.98, 1.02), "released": (0.99, 1.01)}


def draw_jitter(jitter: str, shape: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """Factors of the noise named `jitter`, drawn in float32 (in bfloat16 only five values would be left)."""
    low, high = JITTER_RANGES[jitter]
    return torch.empty(shape, dtype=torch.float32, device=device).uniform_(low, high)


class _AddMap(torch.autograd.Function):
    """The sums of several managers with one map more. scores: (C or 1, 1, D) each. sums: (C, T, D), or one for all.

    One function rather than a product and a sum of torch's for each manager: the backward pass adds what the managers
    make of a map in place, in fewer kernels.
    """

    @staticmethod
    def forward(ctx: Any, map_CTD: torch.Tensor, *scores_and_sums: torch.Tensor) -> tuple[torch.Tensor, ...]:
        count = len(scores_and_sums) // 2
        scores, sums = scores_and_sums[:count], scores_and_sums[count:]
        ctx.save_for_backward(map_CTD, *scores)
        ctx.shapes = [total.shape for total in sums]
        return tuple(torch.addcmul(total, score, map_CTD) for score, total in zip(scores, sums))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, ...]:
        map_CTD, *scores = ctx.saved_tensors
        of_map = gradients[-1] * scores[-1]
        for gradient, score in zip(gradients[-2::-1], scores[-2::-1]):
            of_map.addcmul_(gradient, score)
        of_scores = [(gradient * map_CTD).sum_to_size(score.shape) for gradient, score in zip(gradients, scores)]
        of_sums = [gradient.sum_to_size(shape) for gradient, shape in zip(gradients, ctx.shapes)]
        return of_map, *of_scores, *of_sums


class VisualManagers(Fusion[ManagerConfig, tuple[str, int]]):
    """All managers of a model and the layer embedding that they share."""

    def __init__(self, config: ManagerConfig, sizes: Sizes):
        super().__init__(config, sizes)
        width = sizes.text_width
        self.vision_layers, self.injection_layers = named(config.vision_layers), named(config.injection_layers)
        self.layer_embedding = nn.Parameter(torch.randn(len(self.vision_layers), width) / width**0.5)
        self.managers = nn.ModuleList(
            StaticManager(config.num_maps(layer), width)
            if config.query is None or number == 0
            else AdaptiveManager(config.num_maps(layer), width, config.query)
            for number, layer in enumerate(self.injection_layers)
        )

    def initialise(self) -> None:
        """The layer embedding is N(0, 1/D)."""
        init.normal_(self.layer_embedding, std=self.layer_embedding.shape[-1] ** -0.5)

    @classmethod
    def cost(cls, config: ManagerConfig, sizes: Sizes) -> FusionCost:
        """Every manager's sum over its maps; what adaptive ones ask with, their controllers, and their sums of tokens.

        An adaptive manager stands behind a static one, which gives all hidden states a gradient.
        """
        layers, width = named(config.injection_layers), sizes.text_width
        adaptive = () if config.query is None else layers[1:]
        static, chosen = (sum(map(config.num_maps, some)) for some in (layers[: len(layers) - len(adaptive)], adaptive))
        products: list[Product] = []
        sums = [Product(2 * static * width * sizes.crop_tokens, (WEIGHTS, STATES | {"projector"}))]
        if adaptive:
            asking = width if config.query == "self" else 2 * width
            products.append(Product(2 * asking * chosen, (WEIGHTS, HIDDEN), "visual_token"))
            sums.append(Product(2 * chosen * width, (HIDDEN, PACKED), "visual_token"))
        if adaptive and config.query == "cross":
            projected = 2 * len(adaptive) * width**2
            products += [
                Product(projected, (WEIGHTS, HIDDEN), "visual_token"),
                Product(projected, (WEIGHTS, HIDDEN), "question_token"),
                Product(4 * len(adaptive) * width, (HIDDEN, HIDDEN), "question_pair"),  # scores, weighted states
            ]
        return FusionCost(
            maps=len(config.tower_layers(sizes.vision_layers)) - 1,
            first_layer=layers[0],
            products=tuple(products),
            sums=tuple(sums),
        )

    def _is_static(self, number: int) -> bool:
        return isinstance(self.managers[number], StaticManager)

    @property
    def _static_layers(self) -> list[int]:
        return [layer for number, layer in enumerate(self.injection_layers) if self._is_static(number)]

    @property
    def packed_keys(self) -> tuple[tuple[str, int], ...]:
        """The static managers' sums by the layer that they are added before, then the maps, if a manager adapts."""
        maps = self.vision_layers if self.config.query is not None else ()
        return (*(("sum", layer) for layer in self._static_layers), *(("map", layer) for layer in maps))

    def to_pack(self, crops: Crops) -> dict[tuple[str, int], Packable]:
        """The static managers' sums and, where adaptive managers follow, the maps with their layer embedding."""
        sums, adaptable = self(self._maps(crops), crops.newline, crops.sample_of_crop, crops.num_samples)
        newlines = crops.newline.expand(crops.num_samples, -1)
        packables = [Packable(sum_CTD, ends_SD, self.config.scope, self.jittered) for sum_CTD, ends_SD in sums]
        packables += [Packable(map_CTD, newlines, self.config.scope) for map_CTD in adaptable]
        return dict(zip(self.packed_keys, packables, strict=True))

    def _maps(self, crops: Crops) -> Iterator[torch.Tensor]:
        """One after the other; each is made when it is asked for."""
        layers = self.vision_layers
        if self.config.maps == "last":
            state = crops.visual if layers[-1] == self.visual_layer else crops.project(crops.states[layers[-1]])
            yield from [state] * len(layers)
            return
        for layer in layers:
            yield crops.visual if layer == self.visual_layer else crops.project(crops.states[layer])

    def forward(
        self,
        maps: Iterable[torch.Tensor],
        newline_D: torch.Tensor,
        sample_of_crop_C: torch.Tensor,
        num_samples: int,
    ) -> tuple[list[tuple[torch.Tensor, torch.Tensor]], list[torch.Tensor]]:
        """The static managers' sums, and the maps of the adaptive ones.

        maps: one (C, T, D) tensor per selected vision layer, best made as they are asked for: each is added to all sums
        before the next, so that only what the backward pass needs of them is held.
        Returns, for each static manager, its sums (C, T, D) and what a newline receives per sample (S, D); and the maps
        (C, T, D) with their layer embedding, none where no manager adapts.
        """
        scores: list[tuple[torch.Tensor, ...]] = []  # of each manager, by map
        sums: list[torch.Tensor] = []
        newlines: list[torch.Tensor] = []
        rows = [self.config.rows(layer) for layer in self._static_layers]
        for manager in self.managers:
            if isinstance(manager, StaticManager):
                shape = (num_samples, len(self.vision_layers), newline_D.shape[-1])
                jitter_SND = self._score_jitter(shape, newline_D.device)
                embedding_ND = self._embedding(rows[len(sums)])
                outputs = manager(embedding_ND, newline_D, jitter_SND, sample_of_crop_C)
                scores.append(outputs[0].unsqueeze(2).unbind(1))
                sums.append(outputs[1])
                newlines.append(outputs[2])
        adaptable = []
        for index, map_CTD in enumerate(maps):
            map_CTD = map_CTD.to(newline_D.device)  # as accelerate moves what is given at once
            adding = [number for number, of_maps in enumerate(rows) if index in of_maps]
            given = (
                [scores[number][rows[number].index(index)] for number in adding],
                [sums[number] for number in adding],
            )
            for number, total in zip(adding, _AddMap.apply(map_CTD, *given[0], *given[1])):
                sums[number] = total
            if self.config.query is not None:
                adaptable.append(map_CTD + self.layer_embedding[index])
        newlines = [newline_SD.expand(num_samples, -1) for newline_SD in newlines]
        return list(zip(sums, newlines)), adaptable

    def _embedding(self, rows: tuple[int, ...]) -> torch.Tensor:
        """Of these maps."""
        if rows == tuple(range(len(rows))):
            return self.layer_embedding[: len(rows)]
        return torch.stack([self.layer_embedding[row] for row in rows])

    def deltas(self, packed: dict[tuple[str, int], torch.Tensor], context: Context) -> dict[int, Delta]:
        """The static managers' sums as they are; an adaptive manager's made of the hidden states."""
        deltas: dict[int, Delta] = {layer: packed["sum", layer] for layer in self._static_layers}
        if self.config.query is None:
            return deltas
        maps = [packed["map", layer] for layer in self.vision_layers]
        if self.config.question_rule is None:
            questions = [context.positions[:0]] * len(context.lengths)
        else:
            questions = list(context.questions(self.config.question_rule))
        question_positions, question_lengths = torch.cat(questions), [len(question) for question in questions]

        def adapted(number: int, hidden_states: torch.Tensor) -> torch.Tensor:
            device = hidden_states.device
            texts = list(hidden_states.index_select(0, question_positions.to(device)).split(question_lengths))
            visual_VD = hidden_states.index_select(0, context.positions.to(device))
            return self.adapt(number, visual_VD, context.lengths, texts, maps)

        return deltas | {
            layer: partial(adapted, number)
            for number, layer in enumerate(self.injection_layers)
            if not self._is_static(number)
        }

    def adapt(
        self,
        number: int,
        visual_VD: torch.Tensor,
        lengths: list[int],
        questions: list[torch.Tensor],
        maps: list[torch.Tensor],
    ) -> torch.Tensor:
        """Runs adaptive manager `number` on all images of a batch, see AdaptiveManager.forward."""
        jitter_NVD = self._score_jitter((len(maps), *visual_VD.shape), visual_VD.device)
        # The language model's states are float16 where the maps, as all that comes of the projector, are float32.
        visual_VD = visual_VD.to(maps[0])
        # An image without a question asks itself; what no query uses stays outside, see AdaptiveManager.forward.
        texts = [
            question.to(maps[0]) if len(question) else image
            for question, image in zip(questions, visual_VD.split(lengths))
            if self.config.question_rule is not None
        ]
        return self.jittered(self.managers[number](visual_VD, lengths, texts, maps, jitter_NVD))

    def jittered(self, output: torch.Tensor) -> torch.Tensor:
        """A manager's output, while training with the jitter `paper` multiplied by its noise (Equation 12)."""
        if not self.training or self.config.jitter != "paper":
            return output
        return (output * draw_jitter("paper", output.shape, output.device)).to(output)

    def _score_jitter(self, shape: tuple[int, ...], device: torch.device) -> torch.Tensor | None:
        noisy = self.training and self.config.jitter == "released"
        return draw_jitter(self.config.jitter, shape, device) if noisy else None
