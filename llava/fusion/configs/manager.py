"""The paper's managers, and controls of them."""

import random
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

from llava.bounds import Bounds
from llava.errors import LlavaError, raise_faults
from llava.fusion.config import FusionConfig
from llava.fusion.layers import counted_from_start, layer_range, listed, named, with_visual_input

if TYPE_CHECKING:
    from llava.fusion.base import Fusion

PERMUTATION_SEED = 0  # of the control `permuted`
RANGES = ("layer_set", "interval", "vision_start", "vision_end", "vision_interval", "injection_start", "injection_end")


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
        maps: What static managers sum: `all` maps; or, as a control, the `last` one in the place of all; or a share of
            at least one map each, shallow ones early (`in_order`) or wherever a fixed draw puts them (`permuted`).
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
    maps: Literal["all", "last", "in_order", "permuted"] = "all"

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
        from llava.fusion.visual_managers import VisualManagers

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
        return faults + self._faults_of_control()

    def _faults_of_control(self) -> list[str]:
        """Of the field `maps`."""
        faults = []
        if self.maps != "all" and self.query is not None:
            faults.append(f"maps {self.maps} is for static managers: fusion.query is {self.query}")
        if self._shares_maps and self.first_omits_last_map:
            faults.append(f"maps {self.maps} leaves no map out: fusion.first_omits_last_map is true")
        return faults

    def resolved(self, num_vision_layers: int, num_text_layers: int) -> "ManagerConfig":
        """Layers listed and counted from the start, in place of set, interval and ranges."""
        raise_faults("fusion", [f"fusion.{fault}" for fault in self._faults_of_control()])
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
        omits = self.first_omits_last_map
        if omits is None:
            omits = released and not self._shares_maps
        ranges: dict[str, Any] = {one.name: one.default for one in fields(self) if one.name in RANGES}
        return replace(
            self,
            vision_layers=counted_from_start("manager vision_layers", vision, num_states),
            injection_layers=counted_from_start("manager injection_layers", injection, num_text_layers),
            first_omits_last_map=omits,
            jitter=jitter,
            **ranges,
        )

    def tower_layers(self, num_vision_layers: int) -> tuple[int, ...]:
        """The visual input, then the managed layers that are not the same."""
        layers = named(self.vision_layers)
        return with_visual_input(layers[-1:] if self.maps == "last" else layers, num_vision_layers)

    @property
    def static(self) -> bool:
        """Whether no manager adapts its weights to the hidden states."""
        return self.query is None

    @property
    def question_rule(self) -> str | None:
        """The rule where some manager asks with the question about an image."""
        return self.question if self.query not in (None, "self") else None

    def to_dict(self) -> dict[str, Any]:
        """As FusionConfig.to_dict, without the ranges that the lists of layers came from; `maps` of controls alone."""
        left_out = (*RANGES, "maps") if self.maps == "all" else RANGES
        return {key: value for key, value in super().to_dict().items() if key not in left_out}

    def weights_follow(self) -> dict[str, Any]:
        """Layers and query, and the rule of the question where one is asked; scope and noise are free."""
        names = ["vision_layers", "injection_layers", "first_omits_last_map", "query", "maps"]
        if self.question_rule is not None:
            names.append("question")
        return {name: getattr(self, name) for name in names}

    def num_maps(self, injection_layer: int) -> int:
        """How many maps the manager before `injection_layer` sums."""
        return len(self.rows(injection_layer))

    def rows(self, injection_layer: int) -> tuple[int, ...]:
        """Which maps the manager before `injection_layer` sums, as places in vision_layers, ascending."""
        count = len(named(self.vision_layers))
        if not self._shares_maps:
            return tuple(range(count - bool(self.first_omits_last_map and injection_layer == 0)))
        order = list(range(count))
        if self.maps == "permuted":
            drawn = random.Random(PERMUTATION_SEED)  # random() is the same in every version of Python
            order = [place for _, place in sorted((drawn.random(), place) for place in order)]
        managers = named(self.injection_layers)
        number = managers.index(injection_layer)
        first, behind = (bound * count // len(managers) for bound in (number, number + 1))
        return tuple(sorted(order[first : max(first + 1, behind)]))

    @property
    def _shares_maps(self) -> bool:
        """Whether a manager sums a share of the maps."""
        return self.maps in ("in_order", "permuted")

    def describe(self) -> str:
        """How many, of which kind, their layers, and what adaptive ones ask with."""
        states, layers = listed(self.vision_layers), listed(self.injection_layers)
        managers = f"managers before language-model layers {layers}, of vision states {states}"
        number = len(named(self.injection_layers))
        if self.query is None:
            control = {"all": "", "last": ", the last in the place of all"}
            return f"{number} static {managers}" + control.get(self.maps, f", a share each, {self.maps}")
        if self.query == "self":
            asking = "each token asks for itself"
        else:
            asking = f"query {self.query} of the question, rule {self.question}"
        return f"{number} {managers}; adaptive behind the first, {asking}"
