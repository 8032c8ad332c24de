"""What can be chosen of a method of fusion, and what it answers without torch. The methods are the files of configs/.

A method is a dataclass there and one module beside this file, which `implementation` names. Its fields are the keys of
a recipe's section `fusion` and of `fusion` in config.json; recipes read their types and bounds.
"""

import types
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Self, Union, get_args, get_origin, get_type_hints

from llava.anyres import InSequence
from llava.errors import LlavaError
from llava.fusion.layers import counted_from_start, named, with_visual_input

if TYPE_CHECKING:
    from llava.fusion.base import Fusion

# How a method begins, where its own start is another model than the baseline: as its paper says, or as the baseline.
Initialisation = Literal["own", "zero"]


@dataclass(frozen=True)
class Sizes:
    """Of the model around a method.

    vision_layers: layers of the tower, which has one state more, 0 = the embeddings' output. text_layers: of the
    language model. vision_width, text_width: of their states. crop_tokens: tokens of a crop. text_heads,
    text_key_value_heads, text_mlp_width: of the language model's attention and MLP, 0 where nobody asks.
    """

    vision_layers: int
    vision_width: int
    text_layers: int
    text_width: int
    crop_tokens: int
    text_heads: int = 0
    text_key_value_heads: int = 0
    text_mlp_width: int = 0


@dataclass(frozen=True)
class FusionConfig:
    """How the tower's layers reach the language model. Keys of another method than the recipe's are refused.

    What a method answers without torch; the answers here are those of a method that adds nothing. Lists become tuples.

    Args:
        method: Name of the method; an arm's file names it.

    Raises:
        LlavaError: For a value that is none of a field's choices.
    """

    method: str = field(init=False, default="")

    def __post_init__(self) -> None:
        for name, expected in get_type_hints(type(self)).items():
            value = getattr(self, name)
            if isinstance(value, list):
                object.__setattr__(self, name, tuple(value))
            choices = _choices(expected)
            if choices and value not in choices:
                listed = ", ".join(map(str, choices))
                raise LlavaError(f"unknown {self.method} {name} {value!r}; choose one of {listed}")

    @staticmethod
    def implementation() -> "type[Fusion]":
        """The class that computes the method."""
        raise NotImplementedError

    def faults(self) -> list[str]:
        """Fields that contradict each other, each as a line that is read behind `fusion.`; sizes are not known yet."""
        return []

    def resolved(self, num_vision_layers: int, num_text_layers: int) -> Self:
        """The same for a model of these sizes, every layer named and counted from the start.

        Raises LlavaError for a layer that does not exist.
        """
        return self

    def tower_layers(self, num_vision_layers: int) -> tuple[int, ...]:
        """The tower's states that must be kept, the last one among them where it is the visual input."""
        return (num_vision_layers,)

    def visual_width(self, sizes: Sizes) -> int:
        """The width of what the projector gets."""
        return sizes.vision_width

    def drawn_width(self, sizes: Sizes) -> int:
        """How many channels of that the projector begins with, the first; its weights of the others begin at zero."""
        return self.visual_width(sizes)

    def extra_tokens(self, crop_tokens: int) -> int:
        """How many tokens visual_input has behind a crop's own `crop_tokens`; the tiling counts them from here on."""
        return 0

    @property
    def in_sequence(self) -> InSequence:
        """The crops whose tokens the sequence has: `all`, or `main`, the whole image's; the tiling counts them so."""
        return "all"

    @property
    def takes_tiles(self) -> bool:
        """Whether an image may be more than one crop."""
        return True

    @property
    def needs_tiles(self) -> bool:
        """Whether it adds nothing to an image of one crop."""
        return False

    def hidden_width(self, sizes: Sizes) -> int:
        """The width between the projector's two layers."""
        return sizes.text_width

    @property
    def question_rule(self) -> str | None:
        """How the question about an image is found (see question_spans.py), None where no question matters.

        The visual input is guided by the text of the turn that holds the image, of which the answer is no part.
        """
        return "turn" if self.guided else None

    @property
    def whole_images(self) -> bool:
        """Whether what a visual token receives depends on the others of its image: none may be cut in two."""
        return False

    @property
    def static(self) -> bool:
        """Whether what a visual token receives is known before the language model runs, whose states it needs not."""
        return True

    @property
    def guided(self) -> bool:
        """Whether what the projector gets of an image depends on the question about it, found by question_rule."""
        return False

    def weights_follow(self) -> dict[str, Any]:
        """The fields that trained weights depend on: a stage must start from a model in which they are the same."""
        return {name: value for name, value in asdict(self).items() if name not in ("method", "initialisation")}

    def describe(self) -> str:
        """The method in words, for a resolved configuration."""
        return self.method

    def to_dict(self) -> dict[str, Any]:
        """The method and its fields as JSON values, of a resolved configuration; those that are None are left out."""
        values = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}
        return {key: value for key, value in values.items() if value is not None}


@dataclass(frozen=True)
class StatesConfig(FusionConfig):
    """Of a method that names states of the tower.

    Args:
        vision_layers: The states (0 = the embeddings' output), ascending.
    """

    vision_layers: tuple[int, ...] | None = None

    def states(self, num_vision_layers: int, default: tuple[int, ...]) -> tuple[int, ...]:
        """Those that are named, else the default, counted from the start. Raises as counted_from_start."""
        layers = default if self.vision_layers is None else self.vision_layers
        return counted_from_start(f"{self.method} vision_layers", layers, num_vision_layers + 1)

    def tower_layers(self, num_vision_layers: int) -> tuple[int, ...]:
        """The visual input, then the states that are not the same."""
        return with_visual_input(named(self.vision_layers), num_vision_layers)


def _choices(expected: Any) -> tuple:
    """The values of a Literal, None among them where it is optional; () for other types."""
    if get_origin(expected) is Literal:
        return get_args(expected)
    if get_origin(expected) in (Union, types.UnionType):
        members = get_args(expected)
        if any(get_origin(member) is Literal for member in members):
            return tuple(value for member in members for value in (get_args(member) or (None,)))
    return ()
