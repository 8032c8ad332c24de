"""Score against cost, a point for each row. Needs matplotlib."""

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
