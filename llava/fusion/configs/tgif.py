"""Text-guided inter-layer fusion."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from llava.fusion.config import FusionConfig, Initialisation
from llava.fusion.layers import with_visual_input

if TYPE_CHECKING:
    from llava.fusion.base import Fusion


@dataclass(frozen=True)
class TgifConfig(FusionConfig):
    """Text-guided inter-layer fusion (TGIF, arXiv 2601.03100): the question weighs all states of the tower.

    Args:
        initialisation: `own` is the paper's; `zero` adds the normalised sum to the last state instead of replacing it,
            with a norm of zero: the model begins as the one without fusion.
    """

    method: str = field(init=False, default="tgif")
    initialisation: Initialisation = "own"

    @staticmethod
    def implementation() -> "type[Fusion]":
        """Tgif."""
        from llava.fusion.tgif import Tgif

        return Tgif

    def tower_layers(self, num_vision_layers: int) -> tuple[int, ...]:
        """All but the embeddings' output, the visual input first."""
        return with_visual_input(tuple(range(1, num_vision_layers + 1)), num_vision_layers)

    @property
    def guided(self) -> bool:
        """By the question."""
        return True

    def weights_follow(self) -> dict[str, Any]:
        """How it begins says how it is added."""
        return {"initialisation": self.initialisation}

    def describe(self) -> str:
        """What is weighed by what, and how it begins."""
        begin = ", added to the last one" if self.initialisation == "zero" else ""
        return f"tgif: the question weighs all states of the tower{begin}"
