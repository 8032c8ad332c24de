"""DeepStack, the original."""

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Any, Self

from llava.anyres import InSequence
from llava.bounds import Bounds
from llava.errors import LlavaError
from llava.fusion.config import FusionConfig, Initialisation
from llava.fusion.layers import named

if TYPE_CHECKING:
    from llava.fusion.base import Fusion

MOST_STACKS = 9  # as many crops' worth of tokens as `anyres_max_9` leaves of the tiles in a sequence


@dataclass(frozen=True)
class DeepstackConfig(FusionConfig):
    """DeepStack (arXiv 2406.04334, section 3): the sequence has one crop, the tiles are added to it, layer by layer.

    An image of R x C tiles has R * C stacks of one crop's size. An image without tiles has none.

    Args:
        start: The layer of the language model before which the first stack is added; 1 as in the released code.
        interval: Every so many layers another one; 1 as in the released code.
        max_stacks: Most stacks of an image, the tiles of a larger grid are shrunk to as many; none is 9, or as many as
            there are layers for them. The released code has 4.
        initialisation: `own` adds the stacks as they are; `zero` multiplies each by a vector that is learned from zero
            on, so that the model begins as the one that sees one crop.
    """

    method: str = field(init=False, default="deepstack")
    start: Annotated[int, Bounds(0)] = 1
    interval: Annotated[int, Bounds(1)] = 1
    max_stacks: Annotated[int | None, Bounds(1)] = None
    initialisation: Initialisation = "own"

    @staticmethod
    def implementation() -> "type[Fusion]":
        """Deepstack."""
        from llava.fusion.deepstack import Deepstack

        return Deepstack

    def resolved(self, num_vision_layers: int, num_text_layers: int) -> Self:
        """The number of stacks told. Raises LlavaError where the language model has no layer for one of them."""
        if not 0 <= self.start < num_text_layers:
            raise LlavaError(
                f"deepstack start must be from 0 to {num_text_layers - 1}, a layer of the language model, "
                f"found {self.start}"
            )
        if self.interval < 1:
            raise LlavaError(f"deepstack interval must be at least 1, found {self.interval}")
        places = len(range(self.start, num_text_layers, self.interval))
        wanted = min(places, MOST_STACKS) if self.max_stacks is None else self.max_stacks
        if not 1 <= wanted <= places:
            raise LlavaError(
                f"deepstack max_stacks must be from 1 to {places}, found {wanted}: of {num_text_layers} layers "
                f"these are those from {self.start} on, every {self.interval}"
            )
        return replace(self, max_stacks=wanted)

    @property
    def injection_layers(self) -> tuple[int, ...]:
        """The layer before which each stack is added, of a resolved configuration."""
        (count,) = named(None if self.max_stacks is None else (self.max_stacks,))
        return tuple(self.start + number * self.interval for number in range(count))

    @property
    def in_sequence(self) -> InSequence:
        """The whole-image crop alone."""
        return "main"

    @property
    def needs_tiles(self) -> bool:
        """Yes: they are what it adds."""
        return True

    def weights_follow(self) -> dict[str, Any]:
        """Whether there are gates, and which."""
        of_gates = super().weights_follow() if self.initialisation == "zero" else {}
        return {"initialisation": self.initialisation, **of_gates}

    def describe(self) -> str:
        """How many stacks, and their layers."""
        layers = self.injection_layers
        learned = ", each times a learned vector" if self.initialisation == "zero" else ""
        return (
            f"deepstack of at most {len(layers)} stacks of an image's tiles before language-model layers "
            f"{', '.join(map(str, layers))}{learned}; one crop of it is in the sequence"
        )
