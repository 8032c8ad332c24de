"""What one pass of a LLaVA model shows: each probe watches a batch by hooks of its own, then tells of its samples.

Arrays of one sample, by their names in the npz: N layers of the language model, M injections, E states of the tower,
K layers of the tower that run, H heads of each.

    cosine_visual, cosine_textual (N,)           of each layer's output with what the layer before gave
    movement (M,)                                |delta| / |h| at visual tokens
    similarity_visual_unimodal (M - 1,)          cosine of what consecutive injections add
    weights_visual_mean, _absolute (M, E)        managers' weights
    attention_visual, attention_textual (N, 3)   entropy, entropy of the raw part, KL: see attention.py
    distance (K, H)                              pixels

A mean over no token is not a number.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cosine_similarity

from llava.analysis.attention import attention_distance, patch_distances, visual_attention, watched
from llava.analysis.places import Row, rows_of, samples_of_crops
from llava.fusion.aggregation import aggregations
from llava.fusion.base import Delta
from llava.fusion.layers import named
from llava.fusion.managers import AdaptiveManager
from llava.fusion.visual_managers import VisualManagers
from llava.mllm import LlavaOVManagerForConditionalGeneration
from llava.mllm.configuration import LlavaOVManagerConfig


@dataclass(frozen=True)
class Batch:
    """What a model is given, and where its samples stand."""

    inputs: Mapping[str, Any]
    config: LlavaOVManagerConfig

    @cached_property
    def rows(self) -> list[Row]:
        """Of each sample."""
        return rows_of(self.inputs, self.config)

    @cached_property
    def crops(self) -> torch.Tensor:
        """(C,), the sample of each crop."""
        return samples_of_crops(self.inputs, self.config)


class HiddenCosines:
    """Figure 19. A layer's output is taken as it leaves the layer: before anything is added, without the last norm."""

    def __init__(self, model: LlavaOVManagerForConditionalGeneration):
        self.decoder = model.model.language_model
        self._before: torch.Tensor | None = None
        self._cosines: list[torch.Tensor] = []  # (B, L) of each layer

    @contextmanager
    def watching(self, batch: Batch) -> Iterator[None]:
        """See Recorder."""
        self._cosines = []

        def start(module: nn.Module, arguments: tuple, given: dict) -> None:
            self._before = given["inputs_embeds"]

        with ExitStack() as hooks:
            hooks.enter_context(self.decoder.register_forward_pre_hook(start, with_kwargs=True))
            for layer in self.decoder.layers:
                hooks.enter_context(layer.register_forward_hook(self._compare))
            yield
        self._before = None

    def _compare(self, module: nn.Module, arguments: tuple, output: torch.Tensor) -> None:
        before = self._before.to(output.device)
        rows = [cosine_similarity(one.float(), other.float(), dim=-1) for one, other in zip(output, before)]
        self._cosines.append(torch.stack(rows))
        self._before = output

    def arrays(self, batch: Batch) -> dict[str, torch.Tensor]:
        """See Recorder."""
        cosines = torch.stack([cosines.cpu() for cosines in self._cosines], dim=1)
        places = {"visual": [row.visual for row in batch.rows], "textual": [row.text for row in batch.rows]}
        return {
            f"cosine_{part}": torch.stack([of_one[:, place].mean(1) for of_one, place in zip(cosines, of_part)])
            for part, of_part in places.items()
        }


class Injections:
    """How far each injection moves the visual tokens, and how alike consecutive ones are (Figure 3).

    Only tokens that both of two consecutive injections reach are compared: a scope, and a newline, may get nothing.
    """

    def __init__(self, model: LlavaOVManagerForConditionalGeneration):
        self.decoder = model.model.language_model
        self._last: torch.Tensor | None = None
        self._movements: list[torch.Tensor] = []  # (V,) of each injection
        self._cosines: list[torch.Tensor] = []  # (V,), not a number where one of the two adds nothing
        self._positions = torch.empty(0)
        self.layers: list[int] = []  # before which something is added, ascending

    @contextmanager
    def watching(self, batch: Batch) -> Iterator[None]:
        """See Recorder."""
        self._movements, self._cosines, self._last = [], [], None

        def wrap(module: nn.Module, arguments: tuple, given: dict) -> tuple[tuple, dict]:
            self.layers = sorted(given["visual_deltas"])
            self._positions = given["visual_positions"].cpu()
            deltas = {layer: partial(self._added, given, delta) for layer, delta in given["visual_deltas"].items()}
            return arguments, {**given, "visual_deltas": deltas}

        with self.decoder.register_forward_pre_hook(wrap, with_kwargs=True):
            yield
        self._last = None

    def _added(self, given: dict, delta: Delta, hidden_states: torch.Tensor) -> torch.Tensor:
        """The delta (V, D), once it is compared. hidden_states: (B * L, D)."""
        delta_VD = delta(hidden_states) if callable(delta) else delta
        places = given["visual_positions"].to(hidden_states.device)
        sizes = delta_VD.float().norm(dim=-1)
        states = hidden_states.index_select(0, places).float().norm(dim=-1)
        self._movements.append((sizes.to(states) / states).cpu())
        if self._last is not None:
            cosines = cosine_similarity(delta_VD.float(), self._last.to(delta_VD).float(), dim=-1)
            reached = (sizes > 0) & (self._last.to(delta_VD).float().norm(dim=-1) > 0)
            self._cosines.append(torch.where(reached, cosines, torch.nan).cpu())
        self._last = delta_VD
        return delta_VD

    def arrays(self, batch: Batch) -> dict[str, torch.Tensor]:
        """See Recorder; nothing where the method adds nothing, no similarity of a single injection."""
        results = {}
        sample_of_token = self._positions // batch.inputs["input_ids"].shape[1]
        for name, values in (("movement", self._movements), ("similarity_visual_unimodal", self._cosines)):
            if values:
                of_tokens = torch.stack(values)
                means = [of_tokens[:, sample_of_token == sample].nanmean(1) for sample in range(len(batch.rows))]
                results[name] = torch.stack(means)
        return results


class ManagerWeights:
    """Figures 6 and 7: W of static managers, means over the visual tokens of what adaptive ones make of them.

    W_i in R^D has no softmax: its mean over the channels, and the mean of its size. score * gate is a product, so that
    both means are those of the scores times those of the gates.
    """

    def __init__(self, model: LlavaOVManagerForConditionalGeneration):
        managers = model.model.fusion
        self.managers = managers if isinstance(managers, VisualManagers) else None
        self.decoder = model.model.language_model
        self._scores: dict[int, torch.Tensor] = {}
        self._positions = torch.empty(0)

    @contextmanager
    def watching(self, batch: Batch) -> Iterator[None]:
        """See Recorder."""
        self._scores = {}

        def keep(index: int, module: nn.Module, arguments: tuple, scores_VN: torch.Tensor) -> None:
            self._scores[index] = scores_VN.float().cpu()

        def locate(module: nn.Module, arguments: tuple, given: dict) -> None:
            self._positions = given["visual_positions"].cpu()

        with ExitStack() as hooks:
            hooks.enter_context(self.decoder.register_forward_pre_hook(locate, with_kwargs=True))
            for index, manager in enumerate(self.managers.managers if self.managers is not None else ()):
                if isinstance(manager, AdaptiveManager):
                    hooks.enter_context(manager.controller.register_forward_hook(partial(keep, index)))
            yield

    def arrays(self, batch: Batch) -> dict[str, torch.Tensor]:
        """See Recorder; nothing of another method. Not a number where a manager does not take from a state."""
        if self.managers is None:
            return {}
        states, samples = named(self.managers.config.vision_layers), len(batch.rows)
        sample_of_token = self._positions // batch.inputs["input_ids"].shape[1]
        results = {}
        for name, size in (("mean", nn.Identity()), ("absolute", torch.abs)):
            table = torch.full((samples, len(self.managers.managers), len(states)), torch.nan)
            for index, one in enumerate(aggregations(self.managers)):
                columns = [states.index(layer) for layer in one.vision_layers]
                values = size(one.weights).mean(1).cpu().expand(samples, -1)
                if one.adaptive:
                    scores_VN = size(self._scores[index])
                    of_samples = [scores_VN[sample_of_token == sample].mean(0) for sample in range(samples)]
                    values = values * torch.stack(of_samples)
                table[:, index, columns] = values
            results[f"weights_visual_{name}"] = table
        return results


class Attention:
    """Figures 20 and 21: of visual queries, and of text behind the image, over the visual tokens."""

    def __init__(self, model: LlavaOVManagerForConditionalGeneration):
        self.modules = [layer.self_attn for layer in model.model.language_model.layers]
        self._found: list[list[torch.Tensor]] = []  # by layer, by sample: (2, 3)

    @contextmanager
    def watching(self, batch: Batch) -> Iterator[None]:
        """See Recorder."""
        self._found = []

        def watch(query: torch.Tensor, key: torch.Tensor, scaling: float) -> None:
            of_samples = zip(query, key, batch.rows, strict=True)
            self._found.append(
                [
                    torch.stack([visual_attention(q, k, scaling, row, part) for part in row.parts.values()])
                    for q, k, row in of_samples
                ]
            )

        with watched(dict.fromkeys(self.modules, watch)):
            yield

    def arrays(self, batch: Batch) -> dict[str, torch.Tensor]:
        """See Recorder."""
        shares = torch.stack([torch.stack(of_samples).cpu() for of_samples in self._found], dim=2)  # (B, 2, N, 3)
        return {"attention_visual": shares[:, 0], "attention_textual": shares[:, 1]}


class TowerDistance:
    """The tower's mean attention distance, of the layers that run.

    A class token and registers neither ask nor are asked; the weights of patches sum to 1.
    """

    def __init__(self, model: LlavaOVManagerForConditionalGeneration):
        self.modules = model.model.vision_tower.attentions
        config = model.config
        self._side, self._patch = config.patches_per_side, config.vision_config.patch_size
        self._found: list[torch.Tensor] = []  # (C, H) of each layer

    @contextmanager
    def watching(self, batch: Batch) -> Iterator[None]:
        """See Recorder."""
        self._found = []
        distances: dict[torch.device, torch.Tensor] = {}

        def watch(query: torch.Tensor, key: torch.Tensor, scaling: float) -> None:
            if query.device not in distances:
                distances[query.device] = patch_distances(self._side, self._patch, query.device)
            self._found.append(attention_distance(query, key, scaling, distances[query.device]))

        with watched(dict.fromkeys(self.modules, watch)):
            yield

    def arrays(self, batch: Batch) -> dict[str, torch.Tensor]:
        """See Recorder."""
        distances = torch.stack([of_crops.cpu() for of_crops in self._found], dim=1)  # (C, K, H)
        return {
            "distance": torch.stack([distances[batch.crops == sample].mean(0) for sample in range(len(batch.rows))])
        }
