"""Methods that lay states of the tower beside each other, channel by channel: concat; sci and dci of DenseConnector.

x = P'([V_L ; mean of group 1 ; mean of group 2 ; ...])
"""

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from llava.errors import LlavaError
from llava.fusion.config import FusionConfig, Initialisation, Sizes
from llava.fusion.layers import counted_from_start, in_proportion, listed, named, with_visual_input

if TYPE_CHECKING:
    from llava.fusion.base import Fusion


@dataclass(frozen=True)
class ChannelsConfig(FusionConfig):
    """What these methods share: the visual input, then groups of states, each group as its mean.

    Args:
        initialisation: `own` draws the wider projector as a new one; `zero` lets it begin as the baseline's, without
            weight for what is beside the visual input.
    """

    initialisation: Initialisation = "own"

    @staticmethod
    def implementation() -> "type[Fusion]":
        """DenseConnector."""
        from llava.fusion.dense_connector import DenseConnector

        return DenseConnector

    def groups(self, num_vision_layers: int) -> tuple[tuple[int, ...], ...]:
        """The states of each group, of a resolved configuration."""
        raise NotImplementedError

    def tower_layers(self, num_vision_layers: int) -> tuple[int, ...]:
        """The visual input, then the groups' states that are not the same."""
        layers = sorted({layer for group in self.groups(num_vision_layers) for layer in group})
        return with_visual_input(tuple(layers), num_vision_layers)

    def visual_width(self, sizes: Sizes) -> int:
        """The visual input's and one more for each group."""
        return (1 + len(self.groups(sizes.vision_layers))) * sizes.vision_width

    def drawn_width(self, sizes: Sizes) -> int:
        """That of the visual input where the rest begins at zero."""
        return sizes.vision_width if self.initialisation == "zero" else self.visual_width(sizes)


@dataclass(frozen=True)
class ConcatConfig(ChannelsConfig):
    """States of the tower beside the visual input (Molmo, arXiv 2409.17146; compared in 2504.21447).

    Args:
        vision_layers: The states (0 = the embeddings' output), ascending; none is one, the 15th of 24 in proportion:
            Molmo takes the tenth from the last beside the third from the last.
        initialisation: `own` draws the wider projector as a new one; `zero` lets it begin as the baseline's, without
            weight for what is beside the visual input.
    """

    default_layers: ClassVar[tuple[int, ...]] = (15,)  # of so many:
    default_of: ClassVar[int] = 24

    method: str = field(init=False, default="concat")
    vision_layers: tuple[int, ...] | None = None

    def faults(self) -> list[str]:
        """At least one state."""
        return ["vision_layers must name at least one state"] if self.vision_layers == () else []

    def resolved(self, num_vision_layers: int, num_text_layers: int) -> Self:
        """States in proportion, counted from the start."""
        layers = self.vision_layers
        if layers is None:
            layers = in_proportion(self.default_layers, self.default_of, num_vision_layers)
        if not layers:
            raise LlavaError(f"{self.method} vision_layers must name at least one state")
        layers = counted_from_start(f"{self.method} vision_layers", layers, num_vision_layers + 1)
        return replace(self, vision_layers=layers)

    def groups(self, num_vision_layers: int) -> tuple[tuple[int, ...], ...]:
        """Each state by itself."""
        return tuple((layer,) for layer in named(self.vision_layers))

    def describe(self) -> str:
        """The states."""
        return f"{self.method} of the visual input and vision states {listed(self.vision_layers)}"


@dataclass(frozen=True)
class SciConfig(ConcatConfig):
    """Sparse channel integration of DenseConnector (arXiv 2405.13800): two states beside the visual input.

    Args:
        vision_layers: The states (0 = the embeddings' output), ascending; none is the 8th and the 16th of SigLIP's 26,
            in proportion, where the released code takes states 7 and 15 of every tower.
        initialisation: `own` draws the wider projector as a new one; `zero` lets it begin as the baseline's, without
            weight for what is beside the visual input.
    """

    default_layers: ClassVar[tuple[int, ...]] = (8, 16)
    default_of: ClassVar[int] = 26

    method: str = field(init=False, default="sci")


@dataclass(frozen=True)
class DciConfig(ChannelsConfig):
    """Dense channel integration of DenseConnector (arXiv 2405.13800): the mean of each half of the states before.

    Of 26 layers the halves are V_0 .. V_12 and V_13 .. V_25, those of the released code and of its results.

    Args:
        embeddings: Whether the embeddings' output V_0, which is no layer's, belongs to the `first_half`, as in the
            released code, or is `left_out`: V_1 .. V_12.
        initialisation: `own` draws the wider projector as a new one; `zero` lets it begin as the baseline's, without
            weight for what is beside the visual input.
    """

    method: str = field(init=False, default="dci")
    embeddings: Literal["first_half", "left_out"] = "first_half"

    def resolved(self, num_vision_layers: int, num_text_layers: int) -> Self:
        """As it is. Raises LlavaError where a half has no state."""
        if not all(self.groups(num_vision_layers)):
            raise LlavaError(
                f"{self.method}, embeddings {self.embeddings}: no state for a half of {num_vision_layers} layers"
            )
        return self

    def groups(self, num_vision_layers: int) -> tuple[tuple[int, ...], ...]:
        """The two halves of what is before the visual input."""
        first, middle = int(self.embeddings == "left_out"), num_vision_layers // 2
        return tuple(range(first, middle)), tuple(range(middle, num_vision_layers))

    def describe(self) -> str:
        """Whether with the embeddings."""
        with_or_not = "with" if self.embeddings == "first_half" else "without"
        return (
            f"dci of the visual input and the means of both halves of the states before, {with_or_not} the embeddings"
        )
