"""Gated cross-attention."""

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Self

from llava.errors import LlavaError
from llava.fusion.config import StatesConfig
from llava.fusion.layers import counted_from_start, in_proportion, listed

if TYPE_CHECKING:
    from llava.fusion.base import Fusion


@dataclass(frozen=True)
class CrossAttentionConfig(StatesConfig):
    """Gated cross-attention of Flamingo (arXiv 2204.14198) to several states, as Llama-3.2-Vision has it.

    Visual tokens alone attend, each to all of its own image. The gates begin shut: the model begins as `none`.

    Args:
        vision_layers: States of the tower (0 = the embeddings' output) that are attended to beside the visual input,
            ascending; none is Llama-3.2-Vision's, 3, 7, 15, 23 and 30 of 32, in proportion: 2, 6, 12, 19 and 24 of 26.
        injection_layers: Layers of the language model with a block before them, ascending; none is every fourth.
    """

    method: str = field(init=False, default="cross_attention")
    injection_layers: tuple[int, ...] | None = None

    @staticmethod
    def implementation() -> "type[Fusion]":
        """CrossAttention."""
        from llava.fusion.cross_attention import CrossAttention

        return CrossAttention

    def resolved(self, num_vision_layers: int, num_text_layers: int) -> Self:
        """States in proportion, those of a small tower that coincide once."""
        default = set(in_proportion((3, 7, 15, 23, 30), 32, num_vision_layers)) - {num_vision_layers}
        vision, injection = self.vision_layers, self.injection_layers
        if vision != ():  # then the visual input alone is attended to
            vision = self.states(num_vision_layers, tuple(sorted(default)))
        if num_vision_layers in vision:
            raise LlavaError(f"{self.method} vision_layers name {num_vision_layers}, the visual input, which is there")
        if injection is None:
            injection = tuple(range(0, num_text_layers, 4))
        injection = counted_from_start(f"{self.method} injection_layers", injection, num_text_layers)
        return replace(self, vision_layers=vision, injection_layers=injection)

    @property
    def static(self) -> bool:
        """No: it is made of the hidden states."""
        return False

    @property
    def whole_images(self) -> bool:
        """Every token attends to all of its image."""
        return True

    def describe(self) -> str:
        """The states and the blocks' layers."""
        states, layers = listed(self.vision_layers), listed(self.injection_layers)
        return f"cross_attention to the visual input and vision states {states} before language-model layers {layers}"
