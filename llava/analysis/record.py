"""One hooked pass over a batch, and what it tells of each sample."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch

from llava.analysis.probes import Attention, Batch, HiddenCosines, Injections, ManagerWeights, TowerDistance
from llava.errors import LlavaError
from llava.fusion.managers import AdaptiveManager
from llava.mllm import LlavaOVManagerForConditionalGeneration

PROBES = {
    "hidden": HiddenCosines,
    "injections": Injections,
    "weights": ManagerWeights,
    "attention": Attention,
    "distance": TowerDistance,
}


class Recorder:
    """Runs a LLaVA model once over each batch while probes watch.

    A probe has a context in which the model runs the batch, `watching`, and `arrays` of the batch that it watched last,
    each (B, ...): see probes.py.

    Args:
        model: in evaluation mode, whose attention is transformers' sdpa.
        probes: names of PROBES; `injections` is always among them, for the layers.

    Raises:
        LlavaError: the language model attends within a window.
    """

    def __init__(self, model: LlavaOVManagerForConditionalGeneration, probes: Sequence[str]):
        self.model = model
        self.probes = {name: PROBES[name](model) for name in dict.fromkeys(("injections", *probes))}
        kinds = set(model.config.text_config.layer_types)
        if "attention" in probes and kinds != {"full_attention"}:
            raise LlavaError(f"attention is analysed of whole sequences; layers of this model are {', '.join(kinds)}")

    @torch.inference_mode()
    def record(self, inputs: Mapping[str, Any]) -> list[dict[str, np.ndarray]]:
        """Of each sample, by the names in probes.py.

        inputs: as the model's forward takes them, without labels; padded on either side, never packed. Every sample
            shows something.
        """
        batch = Batch(inputs, self.model.config)
        with ExitStack() as watching:
            for probe in self.probes.values():
                watching.enter_context(probe.watching(batch))
            self.model.model(**inputs, use_cache=False)
        arrays = {name: array for probe in self.probes.values() for name, array in probe.arrays(batch).items()}
        return [
            {name: array[sample].float().numpy() for name, array in arrays.items()} for sample in range(len(batch.rows))
        ]

    def facts(self) -> dict[str, Any]:
        """What holds for every sample, as JSON values; layers of the language model count from 1 as in the paper.

        fusion: in words. injection_layers: before which something is added. managers, experts: by side, each manager's
        layer and kind, and the states that they take from.
        """
        facts: dict[str, Any] = {"fusion": self.model.config.fusion.describe()}
        injections, weights = self.probes.get("injections"), self.probes.get("weights")
        if isinstance(injections, Injections):
            facts["injection_layers"] = [layer + 1 for layer in injections.layers]
        if isinstance(weights, ManagerWeights) and weights.managers is not None:
            managers = weights.managers
            kinds = ["adaptive" if isinstance(one, AdaptiveManager) else "static" for one in managers.managers]
            facts["managers"] = {"visual": [[layer + 1, kind] for layer, kind in zip(managers.injection_layers, kinds)]}
            facts["experts"] = {"visual": list(managers.vision_layers)}
        return facts
