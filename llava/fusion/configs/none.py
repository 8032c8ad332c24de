"""No fusion."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from llava.fusion.config import FusionConfig

if TYPE_CHECKING:
    from llava.fusion.base import Fusion


@dataclass(frozen=True)
class NoneConfig(FusionConfig):
    """The tower's last state alone, as in LLaVA."""

    method: str = field(init=False, default="none")

    @staticmethod
    def implementation() -> "type[Fusion]":
        """NoFusion."""
        from llava.fusion.none import NoFusion

        return NoFusion
