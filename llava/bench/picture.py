"""Score against cost, a point for each row; of a sweep, score against the swept value. Needs matplotlib."""

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from llava.bench.results import Line, table_lines
from llava.bench.rows import REFERENCE
from llava.errors import LlavaError

GREY, BLUE, RED = "#777777", "#0072B2", "#D55E00"  # of Okabe and Ito, told apart with any colour vision


def draw(results: dict[str, Any]) -> Figure:
    """A panel for each data set: the operations of training a sample, and the score.

    Raises LlavaError where no row has a score yet.
    """
    lines = [line for line in table_lines(results) if line.score is not None]
    names = list(dict.fromkeys(line.data for line in lines))
    if not names:
        raise LlavaError("no row has a score yet, there is nothing to draw")
    most = max(sum(line.data == name for line in lines) for name in names)
    figure = Figure(figsize=(10, len(names) * max(5.0, 0.17 * most)), layout="constrained")
    for axes, name in zip(figure.subplots(len(names), 1, squeeze=False)[:, 0], names, strict=True):
        _panel(axes, name, [line for line in lines if line.data == name])
    return figure


def _panel(axes: Axes, name: str, lines: list[Line]) -> None:
    """Each row is a point with a number, and its name stands beside the panel, the best row first.

    The bars are the bootstrap's interval of the difference to the reference, from the reference's score on.
    """
    lines = sorted(lines, key=lambda line: -line.score.score.value if line.score else 0)
    for number, line in enumerate(lines, start=1):
        score, cost = line.score, line.measured["flops"]["training"] / 1e9
        if score is None:
            continue
        value, difference = score.score.value, score.difference
        down, up = 0.0, 0.0
        if difference is not None:
            down, up = max(0.0, difference.value - difference.low), max(0.0, difference.high - difference.value)
        colour = RED if score.differs else GREY if line.row == REFERENCE else BLUE
        axes.errorbar(cost, value, [[down], [up]], fmt="o", color=colour, markersize=5, linewidth=1, capsize=2)
        label = f"{number}  {line.row}"
        axes.annotate(str(number), (cost, value), (4, 3), textcoords="offset points", fontsize=8, color=colour)
        axes.annotate(label, (1.02, 1 - number / (len(lines) + 1)), xycoords="axes fraction", fontsize=8, color=colour)
        if line.row == REFERENCE:
            axes.axhline(value, color=GREY, linewidth=0.7, linestyle=":")
    bars = f"bars: 95% interval of the difference to {REFERENCE}"
    axes.set_title(f"{name}; {bars}; orange: it and Student's over seeds leave out 0", fontsize=9)
    axes.set_xlabel("training, GFLOP a sample")
    axes.set_ylabel("exact match")
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def draw_sweep(results: dict[str, Any]) -> Figure:
    """A panel for each data set: the swept values in their order, and the score; the reference is a dotted line.

    A point is the mean over the seeds, a small dot each seed; the bar is the bootstrap's interval of the difference to
    the reference, from the reference's score on. Raises LlavaError where no value has a score yet.
    """
    sweep = results["sweep"]
    lines = [line for line in table_lines(results) if line.score is not None]
    names = list(dict.fromkeys(line.data for line in lines))
    if not names:
        raise LlavaError("no value has a score yet, there is nothing to draw")
    figure = Figure(figsize=(max(6.0, 1.1 * len(sweep["values"])), 4.2 * len(names)), layout="constrained")
    figure.suptitle(sweep["title"], fontsize=11)
    for axes, name in zip(figure.subplots(len(names), 1, squeeze=False)[:, 0], names, strict=True):
        _sweep_panel(axes, [line for line in lines if line.data == name], sweep["values"])
        axes.set_title(f"{name}; bars: 95% interval of the difference to {REFERENCE}; dots: seeds", fontsize=9)
        axes.set_xlabel(sweep["axis"])
        axes.set_ylabel("exact match")
    return figure


def _sweep_panel(axes: Axes, lines: list[Line], values: list[str]) -> None:
    places = {name: place for place, name in enumerate(values)}
    drawn = []
    for line in lines:
        if line.score is None:
            continue
        value, difference = line.score.score.value, line.score.difference
        if line.row == REFERENCE or difference is None:
            axes.axhline(value, color=GREY, linewidth=1, linestyle=":")
            axes.annotate(REFERENCE, (1.0, value), (3, -3), ("axes fraction", "data"), "offset points", color=GREY)
            continue
        place, seeds = places[line.row], line.score.by_seed
        bar = [[max(0.0, difference.value - difference.low)], [max(0.0, difference.high - difference.value)]]
        colour = RED if line.score.differs else BLUE
        axes.errorbar(place, value, bar, fmt="o", color=colour, markersize=6, linewidth=1.2, capsize=3)
        axes.plot([place + 0.12] * len(seeds), seeds, ".", color=colour, markersize=4, alpha=0.5)
        drawn.append((place, value))
    if drawn:
        axes.plot(*zip(*sorted(drawn), strict=True), color=BLUE, linewidth=0.8, zorder=1)
    axes.set_xticks(list(places.values()), list(places))
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
