"""Visual managers: they aggregate a vision tower's layers and hand the sum to chosen layers of the language model.

    hidden[visual] += sum_i W_i * (map_i + e_i)        before each injection layer, W_i in R^D, zero at initialisation

(Equations 12 to 14 of arXiv 2506.11515; the layer embedding e_i is in the released code only.) This is the static
manager, SAUM. A sum over layers commutes with unpadding, resizing and packing, so it is taken per crop, before packing.
An adaptive manager, AAUM, weighs the maps for every token, at its place in the language model; maps are packed for it.

Shapes: C crops, T tokens per crop, D width of the language model, N selected vision layers, S samples, K managers, V
visual tokens. A map is one vision layer after the shared projector, (C, T, D).
"""

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from transformers import initialization as init

from llava.fusion.base import Context, Crops, Delta, Fusion, FusionCost, Packable, SelfInitialised
from llava.fusion.config import Sizes
from llava.fusion.configs.manager import ManagerConfig
from llava.fusion.layers import named

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


class StaticManager(SelfInitialised):
    """One SAUM: a learned sum over maps, the same for every token."""

    def __init__(self, num_maps: int, width: int):
        super().__init__()
        self.scores = nn.Parameter(torch.zeros(num_maps, width))

    def initialise(self) -> None:
        """Zero: the model begins as the one without managers."""
        init.zeros_(self.scores)

    def forward(
        self,
        layer_embedding_ND: torch.Tensor,
        newline_D: torch.Tensor,
        jitter_SND: torch.Tensor | None,
        sample_of_crop_C: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """What becomes of its maps, which come one at a time and for all managers; see VisualManagers.forward.

        Returns the scores per crop (C or 1, N, D), the sums before the first map (C or 1, 1, D) and, per sample, what a
        newline position receives (S or 1, D).

        jitter_SND: factors on the scores per sample, or None for none. sample_of_crop_C: the sample that each crop
        belongs to.
        """
        count = self.scores.shape[0]
        if jitter_SND is None:
            scores_SND = scores_CND = self.scores[None].clone()  # ZeRO-3 takes the weights away after this call
        else:
            scores_SND = (self.scores * jitter_SND[:, :count]).to(newline_D)
            scores_CND = scores_SND[sample_of_crop_C]
        # sum_i W_i e_i is one vector per sample, cheaper than an addition to every map
        embedding_CTD = (scores_CND * layer_embedding_ND).sum(1)[:, None]
        # Newlines carry the plain newline vector in every layer's map, without layer embedding.
        return scores_CND, embedding_CTD, scores_SND.sum(1) * newline_D


class AdaptiveManager(SelfInitialised):
    """One AAUM: a sum over maps whose weights every token chooses for itself, without softmax.

    delta = sum_i score_i * gate_i * (map_i + e_i),    score = controller(query),    gate = 0 at initialisation
    """

    def __init__(self, num_maps: int, width: int, query: str):
        super().__init__()
        self.query = query
        self.controller = nn.Linear(width if query == "self" else 2 * width, num_maps, bias=False)
        self.gate = nn.Parameter(torch.zeros(num_maps, width))
        if query == "cross":
            self.query_proj = nn.Linear(width, width)
            self.key_proj = nn.Linear(width, width)

    def initialise(self) -> None:
        """A gate of zero: the model begins as the one without managers."""
        init.zeros_(self.gate)

    def forward(
        self,
        visual_VD: torch.Tensor,
        lengths: list[int],
        questions: list[torch.Tensor],
        maps: list[torch.Tensor],
        jitter_NVD: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """What is added at the V tokens of all images of a batch, (V, D).

        visual_VD: their hidden states. lengths: tokens of each image. questions: per image (Q, D), the hidden states of
        its question, at least one; not used with the query `self`. maps: N tensors (V, D), packed. jitter_NVD: factors
        on the weights, or None for none.
        Every weight is used once, however many images there are: ZeRO-3 gathers it each time, on all ranks alike. And
        every tensor given is used: ZeRO-3 releases the weights when all of them have their gradients.
        """
        scores_VN = self.controller(self._query_states(visual_VD, lengths, questions))
        delta_VD = torch.zeros_like(visual_VD)
        for index, map_VD in enumerate(maps):
            weights_VD = scores_VN[:, index, None] * self.gate[index]
            if jitter_NVD is not None:
                weights_VD = (weights_VD * jitter_NVD[index]).to(visual_VD)
            delta_VD = torch.addcmul(delta_VD, weights_VD, map_VD)
        return delta_VD

    def _query_states(self, visual_VD: torch.Tensor, lengths: list[int], questions: list[torch.Tensor]) -> torch.Tensor:
        if self.query == "self":
            return visual_VD
        images = visual_VD.split(lengths)
        if self.query == "last":
            queries = [question[-1:].expand_as(image) for question, image in zip(questions, images)]
        elif self.query == "average":
            queries = [question.mean(0).expand_as(image) for question, image in zip(questions, images)]
        else:
            queries = self._attended(visual_VD, lengths, questions)
        return torch.cat([torch.cat(queries), visual_VD], dim=-1)

    def _attended(
        self, visual_VD: torch.Tensor, lengths: list[int], questions: list[torch.Tensor]
    ) -> list[torch.Tensor]:
        """Per image (V, D): every token's softmax over the question, of its states as they are."""
        queries = self.query_proj(visual_VD).split(lengths)
        keys = self.key_proj(torch.cat(questions)).split([len(question) for question in questions])
        scale = visual_VD.shape[-1] ** -0.5
        return [(q @ k.T * scale).softmax(-1) @ question for q, k, question in zip(queries, keys, questions)]


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
        """Every manager's sum over its maps; the questions of adaptive ones (about 1%) are left out."""
        summed = sum(config.num_maps(layer) for layer in named(config.injection_layers))
        return FusionCost(
            maps=len(config.tower_layers(sizes.vision_layers)) - 1,
            sums=2 * summed * sizes.text_width * sizes.crop_tokens,
            first_layer=named(config.injection_layers)[0],
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
        asked_positions, asked_lengths = torch.cat(questions), [len(question) for question in questions]

        def adapted(number: int, hidden_states: torch.Tensor) -> torch.Tensor:
            device = hidden_states.device
            texts = list(hidden_states.index_select(0, asked_positions.to(device)).split(asked_lengths))
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
