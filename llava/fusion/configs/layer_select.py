"""Layer-Select: internal direct fusion."""

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, Self

from llava.errors import raise_faults
from llava.fusion.config import Initialisation, StatesConfig
from llava.fusion.layers import counted_from_start, in_proportion, listed, named, one_for_each

if TYPE_CHECKING:
    from llava.fusion.base import Fusion


@dataclass(frozen=True)
class LayerSelectConfig(StatesConfig):
    """Internal direct fusion, I_D of arXiv 2503.06063: states of the tower, each through a projector of its own.

    Args:
        vision_layers: States of the tower (0 = the embeddings' output), ascending; none is the paper's, 3, 18 and 23 of
            CLIP-L's 24, in proportion: 3, 20 and 25 of 26, as their code names them for SigLIP.
        injection_layers: Layers of the language model before which they are added, ascending, one for each state; none
            is the paper's for state k, k / 26 of the layers, rounded down, less one; never below 0.
        mapping: Which state is added where: shallow ones before early layers as in the paper, or, as a control, the
            deepest one before the earliest of the same layers.
        initialisation: `own` draws the projectors as the model's projector is drawn; `zero` begins their last matrices
            at zero, so that the model begins as `none`.
    """

    method: str = field(init=False, default="layer_select")
    injection_layers: tuple[int, ...] | None = None
    mapping: Literal["shallow_to_early", "deep_to_early"] = "shallow_to_early"
    initialisation: Initialisation = "own"

    @staticmethod
    def implementation() -> "type[Fusion]":
        """LayerSelect."""
        from llava.fusion.layer_select import LayerSelect

        return LayerSelect

    def faults(self) -> list[str]:
        """As many layers as states."""
        if self.injection_layers is None:
            return []
        states = 3 if self.vision_layers is None else len(self.vision_layers)
        return one_for_each(states, len(self.injection_layers))

    def resolved(self, num_vision_layers: int, num_text_layers: int) -> Self:
        """States in proportion, and the layers that follow from them."""
        raise_faults("fusion", [f"fusion.{fault}" for fault in self.faults()])
        vision = self.states(num_vision_layers, in_proportion((3, 18, 23), 24, num_vision_layers))
        injection = self.injection_layers
        if injection is None:
            injection = tuple(max(0, state * num_text_layers // num_vision_layers - 1) for state in vision)
        return replace(
            self,
            vision_layers=vision,
            injection_layers=counted_from_start(f"{self.method} injection_layers", injection, num_text_layers),
        )

    @property
    def places(self) -> tuple[int, ...]:
        """The layer of the language model that each state is added before, of a resolved configuration."""
        layers = named(self.injection_layers)
        return layers if self.mapping == "shallow_to_early" else layers[::-1]

    def describe(self) -> str:
        """The states and their layers."""
        return f"layer_select of vision states {listed(self.vision_layers)} before language-model layers " + listed(
            self.places
        )
