"""Cross-Layer Injection, as far as it is public."""

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Self

from llava.bounds import Bounds
from llava.fusion.config import StatesConfig
from llava.fusion.layers import counted_from_start, listed

if TYPE_CHECKING:
    from llava.fusion.base import Fusion


@dataclass(frozen=True)
class CliReconstructionConfig(StatesConfig):
    """Cross-Layer Injection (arXiv 2601.10710): states projected with a correction each, gated by what is read.

    A reconstruction: which layers, and the gate, are guessed; see llava/fusion/cli_reconstruction.py. The model begins
    as `none`.

    Args:
        vision_layers: The injected states of the tower (0 = the embeddings' output), ascending; none is every second
            one up to the last, 13 of 26.
        injection_layers: Layers of the language model before which they are injected, ascending; none is every fourth.
        rank: Of a state's correction of the shared projector.
    """

    method: str = field(init=False, default="cli_reconstruction")
    injection_layers: tuple[int, ...] | None = None
    rank: Annotated[int, Bounds(1)] = 64

    @staticmethod
    def implementation() -> "type[Fusion]":
        """CliReconstruction."""
        from llava.fusion.cli_reconstruction import CliReconstruction

        return CliReconstruction

    def resolved(self, num_vision_layers: int, num_text_layers: int) -> Self:
        """Every second state, counted from the last."""
        injection = self.injection_layers
        if injection is None:
            injection = tuple(range(0, num_text_layers, 4))
        return replace(
            self,
            vision_layers=self.states(num_vision_layers, tuple(range(num_vision_layers, 0, -2))[::-1]),
            injection_layers=counted_from_start(f"{self.method} injection_layers", injection, num_text_layers),
        )

    @property
    def static(self) -> bool:
        """No: it is made of the hidden states."""
        return False

    @property
    def whole_images(self) -> bool:
        """A gate is an image's."""
        return True

    def describe(self) -> str:
        """The states, their rank and the layers."""
        states, layers = listed(self.vision_layers), listed(self.injection_layers)
        return f"cli_reconstruction of vision states {states}, rank {self.rank}, before language-model layers {layers}"
