"""The methods of fusion and what can be chosen of each. Imports no torch: recipes read the fields, types and bounds.

A method is a dataclass here, in METHODS, and one module beside this file, which `implementation` names. Its fields are
the keys of a recipe's section `fusion` and of `fusion` in config.json.
"""

import types
from dataclasses import asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, Union, get_args, get_origin, get_type_hints

from llava.bounds import Bounds
from llava.errors import LlavaError, raise_faults

if TYPE_CHECKING:
    from llava.fusion.base import Fusion


@dataclass(frozen=True)
class Sizes:
    """Of the model around a method.

    vision_layers: layers of the tower, which has one state more, 0 = the embeddings' output. text_layers: of the
    language model. vision_width, text_width: of their states. crop_tokens: tokens of a crop.
    """

    vision_layers: int
    vision_width: int
    text_layers: int
    text_width: int
    crop_tokens: int


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

    def extra_tokens(self, crop_tokens: int) -> int:
        """How many tokens visual_input has behind a crop's own `crop_tokens`; the tiling counts them from here on."""
        return 0

    @property
    def question_rule(self) -> str | None:
        """How the question about an image is found (see question_spans.py), None where no question matters."""
        return None

    def weights_follow(self) -> dict[str, Any]:
        """The fields that trained weights depend on: a stage must start from a model in which they are the same."""
        return {name: value for name, value in asdict(self).items() if name != "method"}

    def describe(self) -> str:
        """The method in words, for a resolved configuration."""
        return self.method

    def to_dict(self) -> dict[str, Any]:
        """The method and its fields as JSON values, of a resolved configuration; those that are None are left out."""
        values = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}
        return {key: value for key, value in values.items() if value is not None}


@dataclass(frozen=True)
class NoneConfig(FusionConfig):
    """The tower's last state alone, as in LLaVA."""

    method: str = field(init=False, default="none")

    @staticmethod
    def implementation() -> "type[Fusion]":
        """NoFusion."""
        from llava.fusion.none import NoFusion

        return NoFusion


@dataclass(frozen=True)
class ManagerConfig(FusionConfig):
    """Visual managers (arXiv 2506.11515): sums over the tower's layers before chosen layers of the language model.

    Every layer that is named replaces those of `layer_set`; negative ones count from the end.

    Args:
        vision_layers: The managed states of the tower (0 = the embeddings' output) as a list instead of a range.
        injection_layers: The language model's layers with a manager before them, as a list instead of a range.
        first_omits_last_map: Whether the manager before layer 0 leaves out the last map; none is as in `layer_set`.
        scope: Visual tokens that are managed: `all`, `main` (the whole-image crop) or `grid` (the tiles).
        jitter: Noise while training, anew for each manager and sample: `paper` multiplies a manager's output
            elementwise by U(0.98, 1.02) (Equation 12), `released` its weights by U(0.99, 1.01), `none` draws nothing.
        query: `none` trains static managers (SAUM). Else all but the first are adaptive (AAUM) and ask with the visual
            token's state alone (`self`) or beside the question's `last` token, its `average`, or a `cross` attention
            over it.
        question: The text of the `turn` that holds the image, or what the `released` code takes for the question.
        layer_set: The tower's top half up to its last state as in the `paper`, V_14 .. V_26 of 26 (V-B2), or that of
            the `released` checkpoints, V_13 .. V_25, with one map less before layer 0 and their noise.
        interval: A manager before every so many layers of the language model, as in Figure 11.
        vision_start: First managed state of the tower, as in Figure 10; none keeps the start of `layer_set`'s range.
        vision_end: The state behind the last managed one; none keeps the end of `layer_set`'s range.
        vision_interval: Every so many states of the tower from `vision_start` to before `vision_end` are managed.
        injection_start: The first layer of the language model that has a manager before it; none is the first of all.
        injection_end: The layer behind the last that may have a manager before it; none is behind the last of all.
    """

    method: str = field(init=False, default="manager")
    vision_layers: tuple[int, ...] | None = None
    injection_layers: tuple[int, ...] | None = None
    first_omits_last_map: bool | None = None
    scope: Literal["all", "main", "grid"] = "all"
    jitter: Literal["as_layer_set", "paper", "released", "none"] = "as_layer_set"
    query: Literal["self", "last", "average", "cross"] | None = None
    question: Literal["turn", "released"] = "turn"
    layer_set: Literal["paper", "released"] = "paper"
    interval: Annotated[int, Bounds(1)] = 4
    vision_start: int | None = None
    vision_end: int | None = None
    vision_interval: Annotated[int, Bounds(1)] = 1
    injection_start: int | None = None
    injection_end: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("vision_layers", "injection_layers"):
            layers = getattr(self, name)
            if layers is not None and (not layers or len(set(layers)) != len(layers)):
                raise LlavaError(f"manager {name} must name at least one layer and none twice, found {list(layers)}")
        if self.vision_layers is not None and any(self.num_maps(layer) < 1 for layer in self.injection_layers or ()):
            raise LlavaError("first_omits_last_map needs at least 2 vision_layers, found 1")

    @staticmethod
    def implementation() -> "type[Fusion]":
        """VisualManagers."""
        from llava.fusion.managers import VisualManagers

        return VisualManagers

    def faults(self) -> list[str]:
        """Ranges beside lists, and a question rule that no manager asks by."""
        given = {one.name for one in fields(self) if getattr(self, one.name) != one.default}
        faults = [
            f"{kind}_layers and fusion.{kind}_{end} exclude each other"
            for kind in ("vision", "injection")
            for end in ("start", "end", "interval")
            if {f"{kind}_layers", f"{kind}_{end}"} <= given
        ]
        if "question" in given and self.question_rule is None:
            query = self.query if self.query is not None else "none"
            faults.append(f"question {self.question} is for no manager: fusion.query is {query}")
        return faults

    def resolved(self, num_vision_layers: int, num_text_layers: int) -> "ManagerConfig":
        """Layers listed and counted from the start, in place of set, interval and ranges."""
        # A tower of L layers has L + 1 states.
        released, num_states = self.layer_set == "released", num_vision_layers + 1
        vision, injection = self.vision_layers, self.injection_layers
        if vision is None:
            start = self.vision_start if self.vision_start is not None else num_vision_layers // 2 + 1 - released
            end = self.vision_end if self.vision_end is not None else num_states - released
            vision = layer_range("vision", num_states, start, end, self.vision_interval)
        if injection is None:
            end = self.injection_end if self.injection_end is not None else num_text_layers
            injection = layer_range("injection", num_text_layers, self.injection_start or 0, end, self.interval)
        jitter = self.jitter
        if jitter == "as_layer_set":
            jitter = "released" if released else "paper"
        ranges: dict[str, Any] = {one.name: one.default for one in fields(self) if one.name in RANGES}
        return replace(
            self,
            vision_layers=counted_from_start("manager vision_layers", vision, num_states),
            injection_layers=counted_from_start("manager injection_layers", injection, num_text_layers),
            first_omits_last_map=released if self.first_omits_last_map is None else self.first_omits_last_map,
            jitter=jitter,
            **ranges,
        )

    def tower_layers(self, num_vision_layers: int) -> tuple[int, ...]:
        """The visual input, then the managed layers that are not the same."""
        return with_visual_input(named(self.vision_layers), num_vision_layers)

    @property
    def question_rule(self) -> str | None:
        """The rule where some manager asks with the question about an image."""
        return self.question if self.query not in (None, "self") else None

    def to_dict(self) -> dict[str, Any]:
        """As FusionConfig.to_dict, without the ranges that the lists of layers came from."""
        return {key: value for key, value in super().to_dict().items() if key not in RANGES}

    def weights_follow(self) -> dict[str, Any]:
        """Layers and query, and the rule of the question where one is asked; scope and noise are free."""
        names = ["vision_layers", "injection_layers", "first_omits_last_map", "query"]
        if self.question_rule is not None:
            names.append("question")
        return {name: getattr(self, name) for name in names}

    def num_maps(self, injection_layer: int) -> int:
        """How many maps the manager before `injection_layer` sums."""
        return len(named(self.vision_layers)) - bool(self.first_omits_last_map and injection_layer == 0)

    def describe(self) -> str:
        """How many, of which kind, their layers, and what adaptive ones ask with."""
        states, layers = _listed(self.vision_layers), _listed(self.injection_layers)
        managers = f"managers before language-model layers {layers}, of vision states {states}"
        number = len(named(self.injection_layers))
        if self.query is None:
            return f"{number} static {managers}"
        if self.query == "self":
            asking = "each token asks for itself"
        else:
            asking = f"query {self.query} of the question, rule {self.question}"
        return f"{number} {managers}; adaptive behind the first, {asking}"


@dataclass(frozen=True)
class DeepstackQwen3Config(FusionConfig):
    """DeepStack as Qwen3-VL has it (arXiv 2511.21631): three states of the tower, each added through an MLP of its own.

    Args:
        vision_layers: States of the tower (0 = the embeddings' output), ascending; none is Qwen3-VL's, behind the
            blocks 8, 16 and 24 of 27, in proportion.
        injection_layers: Layers of the language model before which they are added, one for each state; none is 1, 2 and
            3, there behind the layers 0, 1 and 2.
    """

    method: str = field(init=False, default="deepstack_qwen3")
    vision_layers: tuple[int, ...] | None = None
    injection_layers: tuple[int, ...] | None = None

    @staticmethod
    def implementation() -> "type[Fusion]":
        """DeepstackQwen3."""
        from llava.fusion.deepstack_qwen3 import DeepstackQwen3

        return DeepstackQwen3

    def faults(self) -> list[str]:
        """As many states as layers."""
        states, layers = (3 if one is None else len(one) for one in (self.vision_layers, self.injection_layers))
        if states == layers:
            return []
        return [f"vision_layers are {states}, fusion.injection_layers {layers}: one for each"]

    def resolved(self, num_vision_layers: int, num_text_layers: int) -> Self:
        """States in proportion: behind block b, counted from 0, is state b + 1."""
        raise_faults("fusion", [f"fusion.{fault}" for fault in self.faults()])
        vision, injection = self.vision_layers, self.injection_layers
        if vision is None:
            vision = tuple(round((block + 1) * num_vision_layers / 27) for block in (8, 16, 24))
        if injection is None:
            injection = (1, 2, 3)
        return replace(
            self,
            vision_layers=counted_from_start(f"{self.method} vision_layers", vision, num_vision_layers + 1),
            injection_layers=counted_from_start(f"{self.method} injection_layers", injection, num_text_layers),
        )

    def tower_layers(self, num_vision_layers: int) -> tuple[int, ...]:
        """The visual input, then the states that are not the same."""
        return with_visual_input(named(self.vision_layers), num_vision_layers)

    def describe(self) -> str:
        """The states and their layers."""
        states, layers = _listed(self.vision_layers), _listed(self.injection_layers)
        return f"deepstack_qwen3 of vision states {states} before language-model layers {layers}"


RANGES = ("layer_set", "interval", "vision_start", "vision_end", "vision_interval", "injection_start", "injection_end")
METHODS: dict[str, type[FusionConfig]] = {
    kind.method: kind for kind in (NoneConfig, ManagerConfig, DeepstackQwen3Config)
}


def fusion_config(values: dict[str, Any]) -> FusionConfig:
    """The configuration that a mapping of `method` and its fields describes, as in config.json.

    Raises LlavaError for an unknown method or field, and for a value that a field does not take.
    """
    fields_of_method = dict(values)
    method = fields_of_method.pop("method", None)
    if method not in METHODS:
        raise LlavaError(f"unknown fusion method {method!r}; choose one of {', '.join(METHODS)}")
    kind = METHODS[method]
    names = [one.name for one in fields(kind) if one.init]
    unknown = sorted(set(fields_of_method) - set(names))
    if unknown:
        raise LlavaError(
            f"the fusion method {method} has no field {', '.join(unknown)}; it has {', '.join(names) or 'none'}"
        )
    try:
        return kind(**fields_of_method)
    except TypeError as error:  # a value of the wrong kind
        raise LlavaError(f"fusion method {method}: {error}") from None


def _choices(expected: Any) -> tuple:
    """The values of a Literal, None among them where it is optional; () for other types."""
    if get_origin(expected) is Literal:
        return get_args(expected)
    if get_origin(expected) in (Union, types.UnionType):
        members = get_args(expected)
        if any(get_origin(member) is Literal for member in members):
            return tuple(value for member in members for value in (get_args(member) or (None,)))
    return ()


def layer_range(kind: str, count: int, start: int, end: int, interval: int) -> tuple[int, ...]:
    """Every `interval`-th of `count` layers, from `start` to before `end`; negative numbers count from the end.

    kind: `vision` or `injection`. Raises LlavaError for an end of the range that does not exist, for an interval below
    1 and for a range without layers.
    """
    if interval < 1:
        raise LlavaError(f"manager {kind} interval must be at least 1, found {interval}")
    if not -count <= start < count:
        raise LlavaError(f"manager {kind}_start {start} does not exist: the model has {count}, from 0 to {count - 1}")
    if not -count <= end <= count:
        raise LlavaError(f"manager {kind}_end {end} is out of reach: the model has {count}, the last end is {count}")
    first, behind = (bound + count if bound < 0 else bound for bound in (start, end))
    if first >= behind:
        raise LlavaError(
            f"manager {kind}_start {start} and {kind}_end {end} leave none of {count} layers: {first} >= {behind}"
        )
    return tuple(range(first, behind, interval))


def named(layers: tuple[int, ...] | None) -> tuple[int, ...]:
    """The layers that a resolved configuration names. Raises ValueError for one that is not resolved."""
    if layers is None:
        raise ValueError("resolved() names the layers of a configuration")
    return layers


def _listed(layers: tuple[int, ...] | None) -> str:
    return ", ".join(map(str, named(layers)))


def with_visual_input(layers: tuple[int, ...], num_vision_layers: int) -> tuple[int, ...]:
    """The tower's last state, which is the visual input, then those of `layers` that are others."""
    return (num_vision_layers, *(layer for layer in layers if layer != num_vision_layers))


def counted_from_start(name: str, layers: tuple[int, ...], count: int) -> tuple[int, ...]:
    """Layers counted from the start. They must exist and ascend, or LlavaError says which do not.

    Managers need the order: the first is the static one, which may leave out the last map. name: for messages.
    """
    outside = [layer for layer in layers if not -count <= layer < count]
    if outside:
        raise LlavaError(f"{name} {outside} do not exist: the model has {count}, from 0 to {count - 1}")
    counted = tuple(layer % count for layer in layers)
    if len(set(counted)) != len(counted):
        raise LlavaError(f"{name} {list(layers)} must name none twice: of {count} they are {list(counted)}")
    if list(counted) != sorted(counted):
        raise LlavaError(f"{name} {list(layers)} must ascend: of {count} they are {list(counted)}")
    return counted
