"""Which layers of a tower and of a language model a method names. Imports no torch."""

from llava.errors import LlavaError


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


def listed(layers: tuple[int, ...] | None) -> str:
    """For a message, of a resolved configuration."""
    return ", ".join(map(str, named(layers)))


def in_proportion(layers: tuple[int, ...], of: int, count: int) -> tuple[int, ...]:
    """States of a tower of `of` layers as those of one of `count` layers."""
    return tuple(round(layer * count / of) for layer in layers)


def one_for_each(states: int, layers: int) -> list[str]:
    """The fault of a method that adds each state before a layer of its own, read behind `fusion.`; [] for none."""
    if states == layers:
        return []
    return [f"vision_layers are {states}, fusion.injection_layers {layers}: one for each"]


def with_visual_input(layers: tuple[int, ...], num_vision_layers: int) -> tuple[int, ...]:
    """The tower's last state, which is the visual input, then those of `layers` that are others."""
    return (num_vision_layers, *(layer for layer in layers if layer != num_vision_layers))


def counted_from_start(name: str, layers: tuple[int, ...], count: int) -> tuple[int, ...]:
    """Layers counted from the start. They must be some, exist and ascend, or LlavaError says what does not hold.

    Managers need the order: the first is the static one, which may leave out the last map. name: for messages.
    """
    if not layers:
        raise LlavaError(f"{name} must name at least one layer")
    outside = [layer for layer in layers if not -count <= layer < count]
    if outside:
        raise LlavaError(f"{name} {outside} do not exist: the model has {count}, from 0 to {count - 1}")
    counted = tuple(layer % count for layer in layers)
    if len(set(counted)) != len(counted):
        raise LlavaError(f"{name} {list(layers)} must name none twice: of {count} they are {list(counted)}")
    if list(counted) != sorted(counted):
        raise LlavaError(f"{name} {list(layers)} must ascend: of {count} they are {list(counted)}")
    return counted
