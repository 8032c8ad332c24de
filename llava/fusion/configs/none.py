"""No fusion."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

from llava.bounds import Bounds
from llava.fusion.config import FusionConfig, Sizes

if TYPE_CHECKING:
    from llava.fusion.base import Fusion


@dataclass(frozen=True)
class NoneConfig(FusionConfig):
    """The tower's last state alone, as in LLaVA.

    Args:
        projector_width: Width between the projector's two layers, to give it as many parameters as a method adds; none
            is the language model's.
    """

    method: str = field(init=False, default="none")
    projector_width: Annotated[int | None, Bounds(1)] = None

    @staticmethod
    def implementation() -> "type[Fusion]":
        """NoFusion."""
        from llava.fusion.none import NoFusion

        return NoFusion

    def hidden_width(self, sizes: Sizes) -> int:
        """The language model's, unless another is named."""
        return sizes.text_width if self.projector_width is None else self.projector_width

    def describe(self) -> str:
        """None, and the projector's width where it is named."""
        return self.method if self.projector_width is None else f"none, with a projector {self.projector_width:,} wide"


def width_for(parameters: int, sizes: Sizes) -> int:
    """The projector_width that gives `none` about `parameters` more than it has, as nearly as a width can.

    Each channel between the two layers has a weight of every channel on either side, and a bias.
    """
    return sizes.text_width + round(parameters / (sizes.vision_width + sizes.text_width + 1))
