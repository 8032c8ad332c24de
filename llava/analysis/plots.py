"""The figures as pictures, in the paper's form. Needs matplotlib."""

import textwrap
from collections.abc import Callable, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from llava.analysis.curves import Analysed, Curve
from llava.analysis.figures import FIGURES
from llava.eval.report.picture import COLOURS, GREY, MARKERS

DASHES = ("-", "--", "-.", ":")
WIDEST = 8  # panels beside each other
PANELS = {
    "visual": "visual self-attention",
    "textual": "textual-to-visual attention",
}


def draw(name: str, curves: Sequence[Curve], models: Sequence[Analysed], attention: str) -> Figure:
    """One of FIGURES, all models in one picture; below it how to read it. attention: see Options."""
    return _DRAWINGS[name](name, curves, models, attention)


def _panels(
    name: str, count: int, columns: int, note: str, width: float = 5.0, height: float = 3.6
) -> tuple[Figure, list[Axes]]:
    """A figure and its axes in reading order, with its title above and its reading below."""
    columns = min(columns, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(max(6.5, width * columns), height * rows + 1.1), layout="constrained")
    shown, inches = FIGURES[name], figure.get_figwidth()
    number = f"Figure {name}: " if name.isdecimal() else ""
    figure.suptitle(textwrap.fill(f"{number}{shown.title}{note}", int(11 * inches)), fontsize=11)
    figure.supxlabel(textwrap.fill(shown.reading, int(15 * inches)), fontsize=8, color=GREY)
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for unused in axes[count:]:
        unused.set_visible(False)
    return figure, list(axes[:count])


def _style(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set_title(title, fontsize=9)
    axes.set_xlabel(x, fontsize=8)
    axes.set_ylabel(y, fontsize=8)
    axes.tick_params(labelsize=8)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _look(models: Sequence[Analysed], name: str) -> dict:
    return _look_at([model.name for model in models].index(name))


def _look_at(place: int) -> dict:
    """How the line at a place among others looks; where colours come again, with other markers and dashes."""
    again, colour = divmod(place, len(COLOURS))
    marker, dash = MARKERS[(colour + again) % len(MARKERS)], DASHES[again % len(DASHES)]
    return {"color": COLOURS[colour], "marker": marker, "markersize": 3.5, "linestyle": dash}


def _line(axes: Axes, curve: Curve, label: str | None, look: dict) -> None:
    """The means, with a band of one standard error over the samples."""
    points = [point for point in zip(curve.x, curve.mean, curve.error) if point[1] is not None]
    x, means = [point[0] for point in points], [point[1] for point in points]
    axes.plot(x, means, label=label, linewidth=1.3, **look)
    errors = [point[2] or 0.0 for point in points]
    low, high = ([mean + sign * error for mean, error in zip(means, errors)] for sign in (-1, 1))
    axes.fill_between(x, low, high, color=look["color"], alpha=0.15, linewidth=0)


def _dotted(axes: Axes, models: Sequence[Analysed]) -> None:
    """The injection layers: one that a single model of several has in its colour, all others in grey."""
    injecting = [model for model in models if model.injection_layers]
    for layer in sorted({layer for model in injecting for layer in model.injection_layers}):
        having = [model for model in injecting if layer in model.injection_layers]
        only_one = len(having) == 1 < len(injecting)
        colour = _look(models, having[0].name)["color"] if only_one else GREY
        axes.axvline(layer, color=colour, linestyle=":", linewidth=1.2, zorder=0)


def _by_part(name: str, curves: Sequence[Curve], models: Sequence[Analysed], attention: str) -> Figure:
    """A panel for each part, a line for each model: Figures 3, 19, 20, 21 and how far injections move."""
    note = ""
    if name == "20":
        note = ", weights of the visual tokens renormalised" if attention == "renormalised" else ", raw weights"
        curves = [curve for curve in curves if curve.part.endswith(", raw") == (attention == "raw")]
    if name == "21":
        note = ", weights of the visual tokens renormalised, eps 1e-12"
    parts = list(dict.fromkeys(curve.part for curve in curves))
    figure, panels = _panels(name, len(parts), 2, note)
    for axes, part in zip(panels, parts):
        for curve in curves:
            if curve.part == part:
                _line(axes, curve, curve.model, _look(models, curve.model))
        title = part.removesuffix(", raw")
        _style(axes, PANELS.get(title, title) if name in ("20", "21") else title, FIGURES[name].x, FIGURES[name].y)
        if name != "3":
            _dotted(axes, models)
    panels[0].legend(fontsize=8, frameon=False)
    return figure


def _distances(name: str, curves: Sequence[Curve], models: Sequence[Analysed], attention: str) -> Figure:
    """Heads as dots, their mean as a line."""
    figure, (axes,) = _panels(name, 1, 1, "", width=7.0, height=4.2)
    for curve in curves:
        look = _look(models, curve.model)
        if curve.number is None:
            _line(axes, curve, curve.model, look)
        else:
            axes.scatter(curve.x, curve.mean, s=6, color=look["color"], alpha=0.35, linewidths=0)
    _style(axes, "", FIGURES[name].x, FIGURES[name].y)
    axes.legend(fontsize=8, frameon=False)
    return figure


def _shown_sizes(curves: Sequence[Curve]) -> list[Curve]:
    """Of weights without softmax, which have a sign, the mean sizes; of others the means."""
    signed = any(curve.part.endswith("absolute") for curve in curves)
    return [curve for curve in curves if curve.part.endswith("absolute" if signed else "mean")]


def _weight_lines(name: str, curves: Sequence[Curve], models: Sequence[Analysed], attention: str) -> Figure:
    """A panel for each model and side, a line for each manager: Figure 7."""
    groups = _groups(curves)
    figure, panels = _panels(name, len(groups), 2, _unit(curves))
    for axes, ((model, side), of_group) in zip(panels, groups.items()):
        for place, curve in enumerate(of_group):
            _line(axes, curve, f"layer {curve.number}", _look_at(place))
        _style(axes, f"{model}, {side}", FIGURES[name].x, FIGURES[name].y)
        axes.legend(fontsize=7, frameon=False, ncols=2)
    return figure


def _weight_bars(name: str, curves: Sequence[Curve], models: Sequence[Analysed], attention: str) -> Figure:
    """A row for each model and side, a panel for each manager with one scale for the row: Figure 6."""
    groups = _groups(curves)
    columns = min(WIDEST, max(map(len, groups.values())))
    rows = [
        of_group[first : first + columns] for of_group in groups.values() for first in range(0, len(of_group), columns)
    ]
    figure, panels = _panels(name, len(rows) * columns, columns, _unit(curves), width=2.2, height=2.4)
    for number, row in enumerate(rows):
        line = panels[number * columns : (number + 1) * columns]
        top = max(value for curve in groups[row[0].model, _side(row[0])] for value in curve.mean if value is not None)
        for axes, curve in zip(line, row):
            axes.bar(curve.x, [value or 0.0 for value in curve.mean], color=_look(models, curve.model)["color"])
            axes.set_ylim(min(0.0, *(value or 0.0 for value in curve.mean)), 1.05 * top or 1.0)
            _style(axes, f"{curve.model}\n{_side(curve)}, layer {curve.number}", FIGURES[name].x, "")
        for unused in line[len(row) :]:
            unused.set_visible(False)
    return figure


def _unit(curves: Sequence[Curve]) -> str:
    signed = any(curve.part.endswith("absolute") for curve in curves)
    return ": mean |W| over the channels, no softmax" if signed else ": softmaxed, mean over the channels"


def _side(curve: Curve) -> str:
    return curve.part.rpartition(" ")[0]


def _groups(curves: Sequence[Curve]) -> dict[tuple[str, str], list[Curve]]:
    """Those that are shown, by model and side."""
    sides: dict[tuple[str, str], list[Curve]] = {}
    for curve in _shown_sizes(curves):
        sides.setdefault((curve.model, _side(curve)), []).append(curve)
    return sides


_DRAWINGS: dict[str, Callable[..., Figure]] = {
    "3": _by_part,
    "6": _weight_bars,
    "7": _weight_lines,
    "19": _by_part,
    "20": _by_part,
    "21": _by_part,
    "distance": _distances,
    "movement": _by_part,
}
