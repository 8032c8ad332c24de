"""The vision side: the tower, projector, fusion and packing of llava/mllm, as they are, in the hands of vLLM.

Shapes: T tokens of an image or video, D width of the language model, K layers that receive something.
"""

from collections.abc import Sequence

import torch
from torch import nn

from llava.fusion.base import Context, Questions
from llava.mllm.configuration import LlavaOVManagerConfig
from llava.mllm.features import VisualFeaturesMixin
from llava.mllm.visual_input import VisualInput


class VisionSide(VisualFeaturesMixin, nn.Module):
    """From crops to (T, (1 + K) * D) of each image or video: its tokens, then what the layers' states receive there.

    layers: those K layers, ascending.
    """

    def __init__(self, config: LlavaOVManagerConfig):
        super().__init__()
        self.config = config
        self.build_vision_side(config)
        if self.dtype == torch.float16:  # which would overflow there, as in transformers' way
            for module in (self.multi_modal_projector, self.image_newline, self.fusion):
                module.float()
        self.layers = self._layers()

    @property
    def dtype(self) -> torch.dtype:  # type: ignore[override]  # the mixin's is transformers' own
        """Of the tower."""
        return next(self.vision_tower.parameters()).dtype

    def _layers(self) -> list[int]:
        """Asked of the fusion with no token at all."""
        nothing = torch.zeros(0, self.config.text_config.hidden_size)
        packed = dict.fromkeys(self.fusion.packed_keys, nothing)
        device = next(self.fusion.parameters(), nothing).device
        return sorted(self.fusion.deltas({key: one.to(device) for key, one in packed.items()}, _context([], device)))

    @torch.no_grad()
    def forward(self, given: VisualInput, questions: Questions | None) -> list[torch.Tensor]:
        """See the class. questions: about each, for a fusion that is guided by them."""
        features = self.get_visual_features(given, questions)
        tokens: Sequence[torch.Tensor] = features.pooler_output
        lengths = [len(one) for one in tokens]
        packed = {
            key: torch.cat(features.deepstack_features[index]) for index, key in enumerate(self.fusion.packed_keys)
        }
        deltas = self.fusion.deltas(packed, _context(lengths, tokens[0].device))
        columns = [torch.cat(list(tokens)), *(deltas[layer] for layer in self.layers)]
        return list(torch.cat([column.to(self.dtype) for column in columns], dim=-1).split(lengths))


def _context(lengths: list[int], device: torch.device) -> Context:
    """Of visual tokens alone, which is all that a static fusion may ask."""

    def no_questions(rule: str) -> Sequence[torch.Tensor]:
        raise NotImplementedError(f"a static fusion asks for no question, rule {rule}")

    return Context(torch.arange(sum(lengths), device=device), lengths, no_questions)
