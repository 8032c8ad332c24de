"""What one pass of a two-tower model shows: Figures 3, 6, 7 and the image tower's attention distance.

Arrays of one pair, by their names in the npz: L cross-modal layers, N experts of a tower, K layers of the image tower,
H heads. Of a pair with two images they are the means over both passes.

    weights_textual_mean, weights_visual_mean (L, N)             softmaxed, mean over tokens and channels
    similarity_textual_unimodal, _visual_unimodal (L - 1,)       cosine of sum_i W_i X_i with that of the layer before
    similarity_textual_cross-modal, _visual_... (L - 1,)         of what is taken of cross-modal states
    distance (K, H)                                              pixels

Shapes beside these: B pairs, T tokens of a manager's modality, D the hidden size.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cosine_similarity

from llava.analysis.attention import attention_distance, patch_distances, watched
from llava.two_tower.managers import SAM, SAUM, Manager, SplitSAM, UnimodalManager
from llava.two_tower.modeling import TwoTowerForTask, TwoTowerModel

SIDES = {"textual": "text_bridge", "visual": "image_bridge"}
PIXELS = ("pixel_values", "pixel_values_2")  # of the first image of a pair, and of the second
ATTENTIONS = ("self_attn", "attention")  # what towers call a layer's attention


@dataclass(frozen=True)
class Aggregated:
    """What a manager made of its states. weights: (N, B or 1, T or 1, D or 1). unimodal, cross_modal: (B, T, D).

    cross_modal is None in layer 1; the two add up to the manager's output.
    """

    weights: torch.Tensor
    unimodal: torch.Tensor
    cross_modal: torch.Tensor | None


def aggregated(
    manager: Manager,
    experts_NBTD: torch.Tensor,
    previous: list[torch.Tensor],
    other: list[torch.Tensor],
    other_mask: torch.Tensor | None,
) -> Aggregated:
    """The parts of what the manager, in evaluation mode, gives for these arguments."""
    experts_NBTD, before = manager.normed(experts_NBTD), manager.normed_previous(previous) if previous else []
    cross_modal = None
    if isinstance(manager, UnimodalManager):
        previous = before[-1] if before else None
        weights = (manager.scored(experts_NBTD, previous, other, other_mask) / manager.temperature).softmax(0)
        cross_modal = None if previous is None else manager.previous_weight[0] * previous
    elif isinstance(manager, SplitSAM):
        weights = (manager.scores / manager.temperature).softmax(0)
        if before:
            cross_modal = manager.mixed(manager.previous_scores, torch.stack(before), manager.previous_temperature)
    else:
        both = (manager.get_parameter("scores") / manager.temperature).softmax(0)
        weights, rest = both[: len(experts_NBTD)], both[len(experts_NBTD) :]
        cross_modal = (rest * torch.stack(before)).sum(0) if before else None
    return Aggregated(weights, (weights * experts_NBTD).sum(0), cross_modal)


class Bridges:
    """Figures 3, 6 and 7, of one pass."""

    def __init__(self, model: TwoTowerModel):
        self.model = model
        self.has_managers = model.config.bridge == "manager"
        self._made: dict[str, list[Aggregated]] = {}

    @contextmanager
    def watching(self) -> Iterator[None]:
        """A context in which the model fuses texts with images once."""
        self._made = {side: [] for side in SIDES}

        def keep(side: str, manager: Manager, given: tuple, output: torch.Tensor) -> None:
            self._made[side].append(aggregated(manager, *given))

        with ExitStack() as hooks:
            for layer in self.model.cross_modal.layers if self.has_managers else ():
                for side, name in SIDES.items():
                    hooks.enter_context(layer.get_submodule(name).register_forward_hook(partial(keep, side)))
            yield

    def arrays(self, attention_mask: torch.Tensor) -> dict[str, torch.Tensor]:
        """Each (B, ...), of the last pass. attention_mask: (B, L), 0 at the text's padding."""
        results = {}
        for side, made in self._made.items() if self.has_managers else ():
            real_BT = attention_mask.bool() if side == "textual" else torch.ones_like(made[0].unimodal[..., 0]).bool()
            weights = [one.weights.float().mean(-1).expand(-1, *real_BT.shape) for one in made]  # (N, B, T) each
            results[f"weights_{side}_mean"] = torch.stack([_mean(one, real_BT).T for one in weights], dim=1)
            for part in ("unimodal", "cross_modal"):
                states = [vars(one)[part] for one in made]
                cosines = [_cosine(*pair, real_BT) for pair in pairwise(states)]
                if cosines:
                    results[f"similarity_{side}_{part.replace('_', '-')}"] = torch.stack(cosines, dim=1)
        return results

    def facts(self) -> dict[str, Any]:
        """managers: of each side, their layers from 1 and kinds. experts: the towers' layers, from 1."""
        if not self.has_managers:
            return {}
        config = self.model.config
        managers = {
            side: [
                [number, "static" if isinstance(layer.get_submodule(name), SAM | SplitSAM | SAUM) else "adaptive"]
                for number, layer in enumerate(self.model.cross_modal.layers, start=1)
            ]
            for side, name in SIDES.items()
        }
        layers = {
            "textual": (config.text_config.num_hidden_layers, config.text_layers),
            "visual": (config.vision_config.num_hidden_layers, config.image_layers),
        }
        experts = {side: list(range(count - kept + 1, count + 1)) for side, (count, kept) in layers.items()}
        return {"managers": managers, "experts": experts}


def _mean(values: torch.Tensor, real_BT: torch.Tensor) -> torch.Tensor:
    """Over the tokens that are not padding: (..., B, T) to (..., B)."""
    return (values * real_BT).sum(-1) / real_BT.sum(-1)


def _cosine(one: torch.Tensor | None, other: torch.Tensor | None, real_BT: torch.Tensor) -> torch.Tensor:
    """(B,), not a number where one of the two is missing."""
    if one is None or other is None:
        return torch.full((len(real_BT),), torch.nan, device=real_BT.device)
    return _mean(cosine_similarity(one.float(), other.float(), dim=-1), real_BT)


class TwoTowerRecorder:
    """Runs a two-tower model once over each batch and tells of each pair.

    Args:
        model: in evaluation mode, whose image tower's attention is transformers' sdpa.
        probes: `distance` is what alone takes time, and is left out unless it is named.
    """

    def __init__(self, model: TwoTowerForTask, probes: Sequence[str]):
        self.model, self.bridges = model, Bridges(model.model)
        tower = model.model.image_tower
        attentions = [one for name, one in tower.named_modules() if name.rpartition(".")[2] in ATTENTIONS]
        self._attentions: list[nn.Module] = attentions if "distance" in probes else []
        self._distances: list[torch.Tensor] = []

    @torch.inference_mode()
    def record(self, inputs: Mapping[str, Any]) -> list[dict[str, np.ndarray]]:
        """Of each pair, by the names above. inputs: input_ids, attention_mask (B, L), pixel_values (B, 3, S, S)."""
        mask, two_tower = inputs["attention_mask"], self.model.model
        text, passes = two_tower.encode_text(inputs["input_ids"], mask), []
        for number, name in enumerate((name for name in PIXELS if name in inputs), start=1):
            with self._watching_distances(), self.bridges.watching():
                image = two_tower.encode_image(inputs[name].to(self.model.dtype), number)
                two_tower.fuse(text, image, mask)
            arrays = self.bridges.arrays(mask)
            if self._distances:
                arrays["distance"] = torch.stack(self._distances, dim=1)
            passes.append({key: array.float().cpu().numpy() for key, array in arrays.items()})
        means = {key: np.mean([one[key] for one in passes], axis=0) for key in passes[0]}
        return [{key: array[pair] for key, array in means.items()} for pair in range(len(mask))]

    @contextmanager
    def _watching_distances(self) -> Iterator[None]:
        self._distances = []
        config = self.model.config.vision_config
        patches = patch_distances(config.image_size // config.patch_size, config.patch_size, self.model.device)

        def watch(query: torch.Tensor, key: torch.Tensor, scaling: float) -> None:
            self._distances.append(attention_distance(query, key, scaling, patches))

        with watched(dict.fromkeys(self._attentions, watch)):
            yield

    def facts(self) -> dict[str, Any]:
        """What holds for every pair, as JSON values."""
        config = self.model.config
        return {"bridge": config.bridge, "task": config.task, **self.bridges.facts()}
