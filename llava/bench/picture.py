"""Score against cost, a point for each row. Needs matplotlib."""

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from llava.bench.results import Line, table_lines
from llava.bench.rows import REFERENCE
from llava.errors import LlavaError

GREY, BLUE, RED = "#777777", "#0072B2", "#D55E00"  # of Okabe and Ito, told apart with any colour vision


def draw(results: dict[str, Any]) -> Figure:
    """A panel for each data set: the operations of training a sample, and the score with its 95% interval.

    Raises LlavaError where no row has a score yet.
    """
    lines = [line for line in table_lines(results) if line.score is not None]
    names = list(dict.fromkeys(line.data for line in lines))
    if not names:
        raise LlavaError("no row has a score yet, there is nothing to draw")
    figure = Figure(figsize=(9, 0.8 + 5.2 * len(names)), layout="constrained")
    for axes, name in zip(figure.subplots(len(names), 1, squeeze=False)[:, 0], names, strict=True):
        _panel(axes, name, [line for line in lines if line.data == name])
    return figure


def _panel(axes: Axes, name: str, lines: list[Line]) -> None:
    for line in lines:
        score, cost = line.score, line.measured["flops"]["training"] / 1e9
        if score is None or score.score.low is None or score.score.high is None:
            continue
        value = score.score.value
        down, up = max(0.0, value - score.score.low), max(0.0, score.score.high - value)
        colour = RED if score.differs else GREY if line.row == REFERENCE else BLUE
        axes.errorbar(cost, value, [[down], [up]], fmt="o", color=colour, markersize=5, linewidth=1, capsize=2)
        axes.annotate(line.row, (cost, value), (5, 3), textcoords="offset points", fontsize=8, color=colour)
        if line.row == REFERENCE:
            axes.axhline(value, color=GREY, linewidth=0.7, linestyle=":")
    axes.set_title(f"{name}: grey is the reference, orange differs from it by both intervals", fontsize=9)
    axes.set_xlabel("training, GFLOP a sample")
    axes.set_ylabel("exact match, 95% interval")
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
