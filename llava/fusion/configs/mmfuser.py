"""MMFuser."""

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Self

from llava.bounds import Bounds
from llava.errors import LlavaError
from llava.fusion.config import StatesConfig
from llava.fusion.layers import in_proportion, listed

if TYPE_CHECKING:
    from llava.fusion.base import Fusion


@dataclass(frozen=True)
class MmfuserConfig(StatesConfig):
    """MMFuser (arXiv 2410.11829): the visual input asks lower states, by deformable attention, and adds the answer.

    It begins as the baseline by itself, so that there is no other initialisation.

    Args:
        vision_layers: States of the tower that are asked (0 = the embeddings' output), ascending; none is theirs, 3, 8,
            13 and 18 of 24, in proportion.
        heads: Of both attentions; they must divide the tower's width. 16 there.
        points: Where each head looks, in each state; 4 there.
    """

    method: str = field(init=False, default="mmfuser")
    heads: Annotated[int, Bounds(1)] = 16
    points: Annotated[int, Bounds(1)] = 4

    @staticmethod
    def implementation() -> "type[Fusion]":
        """Mmfuser."""
        from llava.fusion.mmfuser import Mmfuser

        return Mmfuser

    def faults(self) -> list[str]:
        """At least one state."""
        return ["vision_layers must name at least one state"] if self.vision_layers == () else []

    def resolved(self, num_vision_layers: int, num_text_layers: int) -> Self:
        """States in proportion, counted from the start."""
        default = in_proportion((3, 8, 13, 18), 24, num_vision_layers)
        layers = default if self.vision_layers is None else self.vision_layers
        if not layers or self.heads < 1 or self.points < 1:
            raise LlavaError(
                f"mmfuser needs at least one state, head and point; found vision_layers {list(layers)}, heads "
                f"{self.heads} and points {self.points}"
            )
        return replace(self, vision_layers=self.states(num_vision_layers, default))

    def describe(self) -> str:
        """The states, heads and points."""
        return f"mmfuser of vision states {listed(self.vision_layers)}, {self.heads} heads of {self.points} points"
