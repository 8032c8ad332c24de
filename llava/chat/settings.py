"""How answers are generated, and how a user writes it."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

from llava.errors import LlavaError


@dataclass(frozen=True)
class Settings:
    """Arguments of `Engine.stream`."""

    max_new_tokens: int = 512
    temperature: float = 0.0
    top_p: float = 1.0


class Setting(NamedTuple):
    """parse: from text, may raise ValueError. holds: whether a value can be used. must: what it must be."""

    parse: Callable[[str], float]
    holds: Callable[[float], bool]
    must: str
    help: str


SETTINGS = {
    "max_new_tokens": Setting(int, lambda value: value >= 1, "be at least 1", "the longest answer"),
    "temperature": Setting(
        float,
        lambda value: 0 <= value < math.inf,
        "be 0 or a positive number",
        "0 is greedy: always the likeliest token",
    ),
    "top_p": Setting(float, lambda value: 0 < value <= 1, "be above 0 and at most 1", "share of likely tokens to draw"),
}


def changed(settings: Settings, values: dict[str, float], prefix: str = "") -> Settings:
    """The settings with other values. Raises LlavaError, naming `prefix` and the setting, for one that cannot be."""
    for name, value in values.items():
        if not SETTINGS[name].holds(value):
            raise LlavaError(f"{prefix}{name} must {SETTINGS[name].must}, found {value}")
    return replace(settings, **values)


def parse_settings(settings: Settings, text: str) -> Settings:
    """`temperature=0.7 top_p=0.9`, to settings with these values. Raises LlavaError for anything else."""
    values = {}
    for word in text.replace(" = ", "=").split():
        name, separator, value = word.partition("=")
        if name not in SETTINGS:
            raise LlavaError(f"unknown setting {name!r}; choose {', '.join(SETTINGS)}")
        try:
            values[name] = SETTINGS[name].parse(value)
        except ValueError:
            example = f"{name}={getattr(settings, name)}"
            found = repr(value) if separator else "nothing"
            raise LlavaError(f"{name} must be a number, found {found}; write {example}") from None
    return changed(settings, values)
