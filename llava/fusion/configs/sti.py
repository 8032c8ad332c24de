"""DenseConnector's sparse token integration."""

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Self

from llava.bounds import Bounds
from llava.fusion.config import StatesConfig
from llava.fusion.layers import in_proportion, listed

if TYPE_CHECKING:
    from llava.fusion.base import Fusion


@dataclass(frozen=True)
class StiConfig(StatesConfig):
    """Sparse token integration of DenseConnector (arXiv 2405.13800): pooled tokens of lower states behind a crop's own.

    Args:
        vision_layers: States of the tower (0 = the embeddings' output), ascending; none is the 8th and the 16th of
            SigLIP's 26, in proportion.
        pool: How many tokens of such a state become one; 8 there.
    """

    method: str = field(init=False, default="sti")
    pool: Annotated[int, Bounds(1)] = 8

    @staticmethod
    def implementation() -> "type[Fusion]":
        """Sti."""
        from llava.fusion.sti import Sti

        return Sti

    def resolved(self, num_vision_layers: int, num_text_layers: int) -> Self:
        """States in proportion."""
        layers = self.states(num_vision_layers, in_proportion((8, 16), 26, num_vision_layers))
        return replace(self, vision_layers=layers)

    def extra_tokens(self, crop_tokens: int) -> int:
        """Whole pools of each state; the tokens behind the last of them are left out."""
        states = 2 if self.vision_layers is None else len(self.vision_layers)
        return states * (crop_tokens // self.pool)

    @property
    def takes_tiles(self) -> bool:
        """No: what stands behind a tile's tokens has no place on the map of tiles."""
        return False

    def describe(self) -> str:
        """The states and the pooling."""
        return f"sti of vision states {listed(self.vision_layers)}, {self.pool} tokens as one, behind each crop's own"
