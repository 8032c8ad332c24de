"""The instruction-guided vision aggregator."""

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from llava.bounds import Bounds
from llava.errors import raise_faults
from llava.fusion.config import FusionConfig, Initialisation, Sizes
from llava.fusion.layers import counted_from_start, listed, named, with_visual_input

if TYPE_CHECKING:
    from llava.fusion.base import Fusion


@dataclass(frozen=True)
class IgvaConfig(FusionConfig):
    """Instruction-guided vision aggregator (IGVA, arXiv 2501.08443): the question weighs the means of groups of states.

    Args:
        aggregator: What weighs the groups: the `question` about an image, or none, which weighs them alike (`uniform`),
            as the paper's first stage does. Without a question, as with the captions of stage 1, they weigh alike, too.
        groups: The last state of each group (the first group begins with state 1), ascending; none is four of equal
            size, the paper's 6, 12, 18 and 24 of 24 in proportion.
        heads: Of the aggregator's attention.
        head_width: Of each head; the aggregator is as wide as all of them together, 1024 in the paper.
        blocks: Of attention and MLP.
        initialisation: `own` draws the projector, which is twice as wide, as the paper does; in `zero` it begins
            without weight for the groups: the model begins as the one without fusion.
    """

    method: str = field(init=False, default="igva")
    aggregator: Literal["question", "uniform"] = "question"
    groups: tuple[int, ...] | None = None
    heads: Annotated[int, Bounds(1)] = 4
    head_width: Annotated[int, Bounds(1)] = 256
    blocks: Annotated[int, Bounds(1)] = 4
    initialisation: Initialisation = "own"

    @staticmethod
    def implementation() -> "type[Fusion]":
        """Igva."""
        from llava.fusion.igva import Igva

        return Igva

    def faults(self) -> list[str]:
        """No group, or one of the embeddings' output."""
        if self.groups == ():
            return ["groups are none: name the last state of each"]
        if self.groups is not None and self.groups[0] == 0:
            return ["groups begin with 0, the embeddings' output: the first group begins with state 1"]
        return []

    def resolved(self, num_vision_layers: int, num_text_layers: int) -> Self:
        """Groups in proportion."""
        raise_faults("fusion", [f"fusion.{fault}" for fault in self.faults()])
        groups = self.groups
        if groups is None:
            groups = tuple(round(end * num_vision_layers / 24) for end in (6, 12, 18, 24))
        return replace(self, groups=counted_from_start(f"{self.method} groups", groups, num_vision_layers + 1))

    def tower_layers(self, num_vision_layers: int) -> tuple[int, ...]:
        """The visual input, then the groups' states that are not the same."""
        return with_visual_input(tuple(range(1, named(self.groups)[-1] + 1)), num_vision_layers)

    @property
    def width(self) -> int:
        """Of the aggregator."""
        return self.heads * self.head_width

    def grouped(self) -> list[range]:
        """The states of each group."""
        ends = named(self.groups)
        return [range(begin + 1, end + 1) for begin, end in zip((0, *ends), ends)]

    def visual_width(self, sizes: Sizes) -> int:
        """Of the last state and the groups' sum."""
        return 2 * sizes.vision_width

    def drawn_width(self, sizes: Sizes) -> int:
        """Of both, or of the last state."""
        return sizes.vision_width if self.initialisation == "zero" else self.visual_width(sizes)

    @property
    def guided(self) -> bool:
        """By the question, which also tells where there is none."""
        return True

    def weights_follow(self) -> dict[str, Any]:
        """Groups and the aggregator's sizes; a stage that does not ask it holds it untrained for the next."""
        return {name: getattr(self, name) for name in ("groups", "heads", "head_width", "blocks")}

    def describe(self) -> str:
        """The groups and what weighs them."""
        weighed = "the question weighs" if self.aggregator == "question" else "alike:"
        return f"igva: {weighed} the groups of states that end with {listed(self.groups)}"
