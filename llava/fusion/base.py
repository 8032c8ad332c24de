"""The questions that every method of fusion answers. What asks them: llava/mllm, and the estimates of training.

tower's states ── visual_input ── projector ── visual tokens ─────────────┐
       └───────── to_pack ── packed as the visual tokens are ── deltas ── added before layers of the language model

Of a method whose configuration is `guided` guided_visual_input stands in the place of visual_input: it is given the
questions, too.

Shapes: C crops, T tokens per crop, D width of the language model, S samples, V visual tokens of a batch.
"""

from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

import torch
from torch import nn
from transformers import initialization as init

from llava.anyres import ImageLayout, VideoLayout
from llava.fusion.config import FusionConfig, Sizes

Config = TypeVar("Config", bound=FusionConfig)
Key = TypeVar("Key", bound=Hashable)  # of what a method packs
Delta = torch.Tensor | Callable[[torch.Tensor], torch.Tensor]  # see Fusion.deltas
Unit = Literal["crop", "visual_token", "visual_pair", "shown", "question_token", "question_pair"]  # see Product

# What matrices are made of, of the components that can train: a method's weights, the tower's states, packed maps, and
# the hidden states that these meet.
WEIGHTS = frozenset({"fusion"})
STATES = frozenset({"vision_tower"})
PACKED = WEIGHTS | {"vision_tower", "projector", "newline"}
HIDDEN = PACKED | {"language_model"}


@dataclass(frozen=True)
class Questions:
    """The question about each of N crops, or images: the text of the turn that holds the image, see question_rule.

    means: (N, D), the mean of the input embeddings of its tokens, zero where there is none. present: (N,), booleans,
    where there is one.
    """

    means: torch.Tensor
    present: torch.Tensor

    def of(self, numbers: torch.Tensor) -> "Questions":
        """Those of the numbers (M,), which may repeat."""
        return Questions(self.means.index_select(0, numbers), self.present.index_select(0, numbers))

    def to(self, device: torch.device) -> "Questions":
        """The same there."""
        return Questions(self.means.to(device), self.present.to(device))


@dataclass(frozen=True)
class Crops:
    """What the vision side has computed of C crops.

    states: {layer: (C, T, width of the tower)}, of the method's `layers`. visual: (C, T, D), the visual input behind
    the projector. project: the model's projector, (..., width) to (..., D). newline: (D,), the vector that ends a row
    of an image. sample_of_crop: (C,), int64, the sample that each crop belongs to, of num_samples. layouts: of each
    image and video, in the order of their crops.
    """

    states: dict[int, torch.Tensor]
    visual: torch.Tensor
    project: Callable[[torch.Tensor], torch.Tensor]
    newline: torch.Tensor
    sample_of_crop: torch.Tensor
    num_samples: int
    layouts: Sequence[ImageLayout | VideoLayout]


@dataclass(frozen=True)
class Packable:
    """Features of crops, to be packed as the visual tokens are, and how.

    crops: (C, T, D). newlines: (S, D), what a newline's position receives, per sample. scope: the visual tokens that
    are reached, `all`, `main` (the whole-image crop) or `grid` (the tiles); the others are zero. jitter: noise on the
    packed tokens of an image, None for none.
    """

    crops: torch.Tensor
    newlines: torch.Tensor
    scope: str = "all"
    jitter: Callable[[torch.Tensor], torch.Tensor] | None = None


@dataclass(frozen=True)
class Context:
    """Where the visual tokens of a batch stand.

    positions: (V,), flat, in (batch * sequence) order. lengths: tokens of each image or video, in this order.
    questions: by a rule of question_spans.py, the flat positions (Q,) of the question about each image or video.
    """

    positions: torch.Tensor
    lengths: list[int]
    questions: Callable[[str], Sequence[torch.Tensor]]


@dataclass(frozen=True)
class Product:
    """A product of matrices, or a weighted sum.

    operations: forward, of one unit. depends: what each of the two that are multiplied is made of, of the components
    that can train (llava.mllm.parts.PREFIXES). unit: `crop`; inside the language model `visual_token`, `visual_pair`
    (of one image), `shown` (an image or video), `question_token` (see Cost), or `question_pair`: a visual token and one
    of its question.
    """

    operations: int
    depends: tuple[frozenset[str], frozenset[str]]
    unit: Unit = "crop"

    def trained(self, components: Collection[str]) -> int:
        """Operations forward and backward, where these train: one product more for each matrix that has a gradient."""
        return self.operations * (1 + sum(bool(one & set(components)) for one in self.depends))


@dataclass(frozen=True)
class FusionCost:
    """What a method costs, beside the tower and the projection of the visual input.

    maps: how many more maps of a crop pass the model's projector. products: the method's own. sums: weighted sums of
    maps or states, a multiplication and an addition for each value that is summed; means, whose weights nobody learns
    or computes, and additions alone are left out. kept, kept_of_token: values that autograd keeps of its products, of a
    crop, and of a visual token in the language model. first_layer: the first of the language model that depends on the
    method's weights. before_projector: whether the visual input depends on them.
    """

    maps: int = 0
    products: tuple[Product, ...] = ()
    sums: tuple[Product, ...] = ()
    kept: int = 0
    kept_of_token: int = 0
    first_layer: int = 0
    before_projector: bool = False


class SelfInitialised(nn.Module):
    """A module that draws its first weights itself, where transformers' _init_weights knows no better."""

    def initialise(self) -> None:
        """Draws the parameters that are this module's own; its submodules have theirs already."""


class Linear(SelfInitialised, nn.Linear):
    """nn.Linear that begins as torch's does.

    A class of its own, because transformers passes over modules of ours that have no parameter directly: what holds
    such a layer cannot draw its weights.
    """

    def initialise(self) -> None:
        """As torch's nn.Linear."""
        init_as_linear(self)


class ZeroLinear(Linear):
    """A linear layer that begins at zero, so that a model begins as the one without it."""

    def initialise(self) -> None:
        """Zero, the bias too."""
        init.zeros_(self.weight)
        if self.bias is not None:
            init.zeros_(self.bias)


class Fusion(SelfInitialised, Generic[Config, Key]):
    """How a tower's layers reach the language model. A subclass answers what differs from doing nothing.

    Parameters are used in the forward of a module that is given tensors and returns tensors, each once: only there does
    ZeRO-3 gather them.

    Args:
        config: of the method, resolved for the model.
        sizes: of the model.
    """

    def __init__(self, config: Config, sizes: Sizes):
        super().__init__()
        self.config = config
        self.visual_layer = sizes.vision_layers
        self.layers = config.tower_layers(sizes.vision_layers)
        self._no_split_modules = [type(self).__name__]  # read by transformers: stays on one device

    @classmethod
    def cost(cls, config: Config, sizes: Sizes) -> FusionCost:
        """Of a model of these sizes."""
        return FusionCost()

    def visual_input(self, states: dict[int, torch.Tensor]) -> torch.Tensor:
        """What the projector gets, (C, T + config.extra_tokens, config.visual_width)."""
        return states[self.visual_layer]

    def guided_visual_input(self, states: dict[int, torch.Tensor], questions: Questions) -> torch.Tensor:
        """visual_input of a method that config.guided says it of. questions: of the C crops."""
        return self.visual_input(states)

    @property
    def packed_keys(self) -> tuple[Key, ...]:
        """The keys of what to_pack returns, in their order, the same for every batch."""
        return ()

    def to_pack(self, crops: Crops) -> Mapping[Key, Packable | list[torch.Tensor]]:
        """What is packed beside the visual tokens: features of crops, or what each image and video has at its tokens.

        The latter are packed already, (tokens, D) of each, with as many tokens as its layout says.
        """
        return {}

    def deltas(self, packed: dict[Key, torch.Tensor], context: Context) -> Mapping[int, Delta]:
        """What is added to the visual tokens before layers of the language model.

        packed: what to_pack returned, packed, each (V, D).
        Returns {layer: (V, D)}, or in place of a tensor a function that makes it of all hidden states at that point,
        (batch * sequence, D).
        """
        return {}


def like_weight(features: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The features in the precision of a weight that they meet, for float32 ones in a model that is loaded in float16.

    As they are under autocast, which chooses the precision itself.
    """
    return features if torch.is_autocast_enabled(features.device.type) else features.to(weight.dtype)


def init_as_linear(linear: nn.Linear, inputs: int | None = None) -> None:
    """Draws weight and bias, if any, as torch's nn.Linear does, whatever the model's initializer_range.

    inputs: of how many channels the layer is drawn; None for all that it has.
    """
    bound = (linear.in_features if inputs is None else inputs) ** -0.5
    init.uniform_(linear.weight, -bound, bound)
    if linear.bias is not None:
        init.uniform_(linear.bias, -bound, bound)
