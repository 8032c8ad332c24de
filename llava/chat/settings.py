"""How answers are generated, and how a user writes it: one table for `/set`, the command's flags and logs."""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

from llava.errors import LlavaError

NO_SEED = "none"


@dataclass(frozen=True)
class Settings:
    """Arguments of `Engine.stream`."""

    max_new_tokens: int = 512
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    seed: int | None = None


class Setting(NamedTuple):
    """parse: from text, may raise ValueError. holds: whether a value can be used. must: what it must be.

    whole: whether it is an integer. letter: of a value, in help. draws: whether it is about drawing tokens, which
    temperature 0 does not.
    """

    parse: Callable[[str], float | None]
    holds: Callable[[float | None], bool]
    must: str
    help: str
    whole: bool
    letter: str
    draws: bool


def _seed(text: str) -> int | None:
    return None if text == NO_SEED else int(text)


SETTINGS = {
    "max_new_tokens": Setting(
        int,
        lambda value: value >= 1,
        "be at least 1",
        "the longest answer, in tokens",
        whole=True,
        letter="N",
        draws=False,
    ),
    "temperature": Setting(
        float,
        lambda value: 0 <= value < math.inf,
        "be 0 or a positive number",
        "0 is greedy: always the likeliest token",
        whole=False,
        letter="T",
        draws=False,
    ),
    "top_p": Setting(
        float,
        lambda value: 0 < value <= 1,
        "be above 0 and at most 1",
        "share of likely tokens to draw from",
        whole=False,
        letter="P",
        draws=True,
    ),
    "top_k": Setting(
        int,
        lambda value: value >= 0,
        "be at least 0",
        "how many of the likeliest tokens to draw from, 0 for all",
        whole=True,
        letter="K",
        draws=True,
    ),
    "repetition_penalty": Setting(
        float,
        lambda value: 0 < value < math.inf,
        "be a positive number",
        "above 1, what was written is written again less often",
        whole=False,
        letter="R",
        draws=False,
    ),
    "seed": Setting(
        _seed,
        lambda value: value is None or 0 <= value < 2**63,
        f"be {NO_SEED} or from 0 to 2^63 - 1",
        f"the same conversation draws the same answers; {NO_SEED}: others each time",
        whole=True,
        letter="N",
        draws=True,
    ),
}


def written(value: float | None) -> str:
    """A setting's value as the user writes it."""
    return NO_SEED if value is None else str(value)


def changed(settings: Settings, values: dict[str, float | None], prefix: str = "") -> Settings:
    """The settings with other values. Raises LlavaError, naming `prefix` and the setting, for one that cannot be."""
    for name, value in values.items():
        if not SETTINGS[name].holds(value):
            raise LlavaError(f"{prefix}{name} must {SETTINGS[name].must}, found {value}")
    return replace(settings, **values)


def without_effect(settings: Settings) -> list[str]:
    """Names of what was chosen for drawing tokens, though temperature 0 draws none."""
    if settings.temperature > 0:
        return []
    return [f.name for f in fields(Settings) if SETTINGS[f.name].draws and getattr(settings, f.name) != f.default]


def settings_notes(settings: Settings) -> list[str]:
    """What the user should know about them, a line each."""
    unused = without_effect(settings)
    verb = "has" if len(unused) == 1 else "have"
    return [f"temperature is 0: {', '.join(unused)} {verb} no effect"] if unused else []


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
            example = f"{name}={written(getattr(settings, name))}"
            given = repr(value) if separator else "nothing"
            raise LlavaError(f"{name} must be a number, found {given}; write {example}") from None
    return changed(settings, values)
