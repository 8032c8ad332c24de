"""DeepStack of Qwen3-VL."""

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Self

from llava.errors import raise_faults
from llava.fusion.config import Initialisation, StatesConfig
from llava.fusion.layers import counted_from_start, in_proportion, listed, one_for_each

if TYPE_CHECKING:
    from llava.fusion.base import Fusion


@dataclass(frozen=True)
class DeepstackQwen3Config(StatesConfig):
    """DeepStack as Qwen3-VL has it (arXiv 2511.21631): three states of the tower, each added through an MLP of its own.

    Args:
        vision_layers: States of the tower (0 = the embeddings' output), ascending; none is Qwen3-VL's, behind the
            blocks 8, 16 and 24 of 27, in proportion.
        injection_layers: Layers of the language model before which they are added, one for each state; none is 1, 2 and
            3, there behind the layers 0, 1 and 2.
        initialisation: `own` draws the MLPs as torch draws linear layers; `zero` begins their last matrices at zero, so
            that the model begins as `none`.
    """

    method: str = field(init=False, default="deepstack_qwen3")
    injection_layers: tuple[int, ...] | None = None
    initialisation: Initialisation = "own"

    @staticmethod
    def implementation() -> "type[Fusion]":
        """DeepstackQwen3."""
        from llava.fusion.deepstack_qwen3 import DeepstackQwen3

        return DeepstackQwen3

    def faults(self) -> list[str]:
        """As many states as layers."""
        states, layers = (3 if one is None else len(one) for one in (self.vision_layers, self.injection_layers))
        return one_for_each(states, layers)

    def resolved(self, num_vision_layers: int, num_text_layers: int) -> Self:
        """States in proportion: behind block b, counted from 0, is state b + 1."""
        raise_faults("fusion", [f"fusion.{fault}" for fault in self.faults()])
        injection = (1, 2, 3) if self.injection_layers is None else self.injection_layers
        return replace(
            self,
            vision_layers=self.states(num_vision_layers, in_proportion((9, 17, 25), 27, num_vision_layers)),
            injection_layers=counted_from_start(f"{self.method} injection_layers", injection, num_text_layers),
        )

    def describe(self) -> str:
        """The states and their layers."""
        states, layers = listed(self.vision_layers), listed(self.injection_layers)
        return f"deepstack_qwen3 of vision states {states} before language-model layers {layers}"
