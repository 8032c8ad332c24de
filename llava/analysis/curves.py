"""From the samples' arrays of one model to the curves of a figure."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from llava.analysis.progress import Arrays

PARTS = ("visual", "textual")  # sides of a two-tower model, and parts of an attention row, likewise


@dataclass(frozen=True)
class Curve:
    """A line of a figure: values at x, means over the samples.

    part: of the figure, such as `visual`. number: of the manager or head, None where there is one line. error: the
    standard errors over the samples, None where there is one. samples: how many have each value.
    """

    model: str
    part: str
    x: list[int]
    mean: list[float | None]
    error: list[float | None]
    samples: list[int]
    number: int | None = None


@dataclass(frozen=True)
class Analysed:
    """What is known of one model.

    weights: their identity. facts: see Recorder.facts. arrays: by the names of probes.py, each (S, ...) of S samples.
    """

    name: str
    folder: str
    weights: str
    facts: dict[str, Any]
    arrays: Arrays

    @property
    def injection_layers(self) -> list[int]:
        """The layers, from 1, before which something is added."""
        return self.facts.get("injection_layers", [])


def curves_of(figure: str, model: Analysed) -> list[Curve]:
    """The model's curves of one of FIGURES; none where it has none."""
    return _CURVES[figure](model)


def _curve(model: Analysed, part: str, values: np.ndarray, x: list[int], number: int | None = None) -> Curve:
    """values: (S, len(x)); of some samples a value may not be a number."""
    counts = (~np.isnan(values)).sum(0)
    sums = np.nansum(values, 0, dtype=np.float64)
    means = np.divide(sums, counts, out=np.full(len(x), np.nan), where=counts > 0)
    squares = np.nansum((values - means) ** 2, 0, dtype=np.float64)
    several = counts > 1
    errors = np.full(len(x), np.nan)
    errors[several] = np.sqrt(squares[several] / (counts[several] - 1) / counts[several])
    return Curve(model.name, part, x, _numbers(means), _numbers(errors), counts.tolist(), number)


def _numbers(values: np.ndarray) -> list[float | None]:
    return [None if np.isnan(value) else float(value) for value in values]


def _from_one(values: np.ndarray) -> list[int]:
    return list(range(1, values.shape[1] + 1))


def _similarity(model: Analysed) -> list[Curve]:
    """Manager 2 against manager 1, and so on."""
    curves = []
    for side in PARTS:
        for part in ("unimodal", "cross-modal"):
            values = model.arrays.get(f"similarity_{side}_{part}")
            if values is not None:
                curves.append(_curve(model, f"{side} {part}", values, list(range(2, 2 + values.shape[1]))))
    return curves


def _weights(model: Analysed, kinds: tuple[str, ...]) -> list[Curve]:
    """A line for each manager, over the states that it takes from."""
    curves = []
    for side in PARTS:
        for size in ("mean", "absolute"):
            values = model.arrays.get(f"weights_{side}_{size}")
            for place, (number, kind) in enumerate(model.facts["managers"][side] if values is not None else ()):
                if kind in kinds:
                    there = ~np.isnan(values[:, place]).all(0)
                    x = [expert for expert, is_there in zip(model.facts["experts"][side], there) if is_there]
                    curves.append(_curve(model, f"{side} {size}", values[:, place, there], x, number))
    return curves


def _hidden(model: Analysed) -> list[Curve]:
    return _of_parts(model, "cosine")


def _of_parts(model: Analysed, name: str, column: int | None = None, suffix: str = "") -> list[Curve]:
    curves = []
    for part in PARTS:
        values = model.arrays.get(f"{name}_{part}")
        if values is not None:
            values = values if column is None else values[:, :, column]
            curves.append(_curve(model, f"{part}{suffix}", values, _from_one(values)))
    return curves


def _entropy(model: Analysed) -> list[Curve]:
    return _of_parts(model, "attention", 0) + _of_parts(model, "attention", 1, ", raw")


def _divergence(model: Analysed) -> list[Curve]:
    return _of_parts(model, "attention", 2)


def _distance(model: Analysed) -> list[Curve]:
    values = model.arrays.get("distance")
    if values is None:
        return []
    heads = [_curve(model, "head", values[:, :, head], _from_one(values), head) for head in range(values.shape[2])]
    return [_curve(model, "mean", values.mean(2), _from_one(values)), *heads]


def _movement(model: Analysed) -> list[Curve]:
    values = model.arrays.get("movement")
    return [] if values is None else [_curve(model, "visual", values, model.injection_layers)]


_CURVES = {
    "3": _similarity,
    "6": lambda model: _weights(model, ("adaptive", "static")),
    "7": lambda model: _weights(model, ("static",)),
    "19": _hidden,
    "20": _entropy,
    "21": _divergence,
    "distance": _distance,
    "movement": _movement,
}
