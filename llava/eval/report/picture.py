"""The benchmarks of a report as a picture, after the paper's Figure 9. Needs matplotlib."""

import math
import textwrap

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from llava.errors import LlavaError
from llava.eval.benchmarks import BENCHMARKS, CATEGORIES
from llava.eval.report.comparison import OVERALL, Report, Row

# Okabe and Ito's colours, told apart with any colour vision; markers and hatches help where colours are lost.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
HATCHES = ("", "//", "..", "\\\\", "xx", "--", "oo")
GREY = "#777777"


def draw(report: Report, style: str) -> Figure:
    """The runs that have benchmarks. style: "bar" or "radar".

    Raises LlavaError when there is nothing to draw, or more runs than can be told apart.
    """
    runs = [run for run in report.runs if any(run in row.scores for row in report.benchmarks)]
    if not runs:
        raise LlavaError("none of the runs has the score of a benchmark, there is nothing to draw")
    if len(runs) > len(COLOURS):
        raise LlavaError(f"{len(runs)} runs cannot be told apart in a picture, {len(COLOURS)} can")
    return _bars(report, runs) if style == "bar" else _radar(report, runs)


def _bars(report: Report, runs: list[str]) -> Figure:
    """Averages above, with their values; benchmarks below; both with 95% intervals."""
    title = textwrap.fill(report.title, 125)
    averages = [row for row in report.averages if row.name in (*CATEGORIES, OVERALL) and row.scores]
    rows = [row for row in report.benchmarks if row.scores]
    height = (9 if averages else 5.5) + 0.2 * title.count("\n")
    figure = Figure(figsize=(13, height), layout="constrained")
    figure.suptitle(title, fontsize=11)
    if averages:
        above, below = figure.subplots(2, 1)
        _bar_panel(above, averages, runs, values=True)
    else:
        below = figure.subplots()
    _bar_panel(below, rows, runs, values=len(rows) * len(runs) <= 20)
    below.tick_params(axis="x", labelrotation=35)
    for label in below.get_xticklabels():
        label.set(ha="right", rotation_mode="anchor")
    handles, labels = below.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(runs), 4), frameon=False)
    return figure


def _bar_panel(axes: Axes, rows: list[Row], runs: list[str], values: bool) -> None:
    """A group of bars per row, one bar per run, in the order of the legend."""
    width = 0.8 / len(runs)
    for index, run in enumerate(runs):
        places = [place + (index - (len(runs) - 1) / 2) * width for place in range(len(rows))]
        scores = [row.scores.get(run) for row in rows]
        found = [(place, score) for place, score in zip(places, scores, strict=True) if score is not None]
        heights = [score.value for _, score in found]
        down = [max(0, score.value - score.low) for _, score in found]  # rounding can leave less than 0
        up = [max(0, score.high - score.value) for _, score in found]
        look = {"color": COLOURS[index], "hatch": HATCHES[index], "edgecolor": "white", "linewidth": 0.4}
        error = {"ecolor": "#333333", "elinewidth": 0.9, "capsize": 1.5}
        axes.bar([place for place, _ in found], heights, width, label=run, yerr=[down, up], error_kw=error, **look)
        for place, score in zip(places, scores, strict=True):
            if score is None:
                axes.text(place, 1, "none", rotation=90, ha="center", va="bottom", fontsize=7, color=GREY)
            elif values:
                axes.text(place, score.high + 1, f"{score.value:.1f}", ha="center", va="bottom", fontsize=8)
    top = max(score.high for row in rows for score in row.scores.values())
    axes.set_ylim(0, max(100, 1.08 * top))
    axes.set_xlim(-0.6, len(rows) - 0.4)
    axes.set_xticks(range(len(rows)), [row.label for row in rows])
    axes.set_ylabel("score, 95% interval")
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _radar(report: Report, runs: list[str]) -> Figure:
    """A spoke per benchmark that every run has; the averages stand in the legend."""
    rows = [row for row in report.benchmarks if all(run in row.scores for run in runs)]
    if len(rows) < 3:
        raise LlavaError(f"a radar needs 3 benchmarks that every run has, these runs have {len(rows)}; draw bars")
    values = [row.scores[run].value for row in rows for run in runs]
    low, high = max(0, 10 * math.floor(min(values) / 10) - 10), 10 * math.floor(max(values) / 10) + 10
    scale = f"scores from {low} in the centre to {high} at the rim"
    if len(rows) < len(report.benchmarks):
        scale = f"the {len(rows)} benchmarks that every run has; {scale}"
    title = textwrap.fill(report.title, 105) + "\n" + scale
    figure = Figure(figsize=(11, 9.5 + 0.2 * title.count("\n")), layout="constrained")
    figure.suptitle(title, fontsize=11)
    axes = figure.add_subplot(projection="polar")
    angles = [2 * math.pi * index / len(rows) for index in range(len(rows))]
    for index, run in enumerate(runs):
        values = [row.scores[run].value for row in rows]
        colour, marker = COLOURS[index], MARKERS[index]
        axes.plot(
            [*angles, angles[0]], [*values, values[0]], color=colour, marker=marker, markersize=4.5, linewidth=1.6
        )
    _radar_axes(axes, [row.name for row in rows], angles, low, high)
    _radar_categories(axes, rows, angles, low, high)
    _radar_legend(figure, report, runs)
    return figure


def _radar_axes(axes: Axes, names: list[str], angles: list[float], low: int, high: int) -> None:
    """Clockwise from the top, one scale for all spokes, their names outside the circle."""
    axes.set_theta_zero_location("N")
    axes.set_theta_direction(-1)
    axes.set_ylim(low, high)
    axes.set_yticks(range(low, high + 1, 10))
    axes.set_rlabel_position(math.degrees(angles[1]) / 2)
    axes.tick_params(axis="y", labelsize=8, labelcolor=GREY)
    axes.grid(color="#cccccc", linewidth=0.7)
    axes.spines["polar"].set_color("#999999")
    axes.set_xticks(angles, names)
    axes.tick_params(axis="x", pad=4, labelsize=10)
    for label, angle in zip(axes.get_xticklabels(), angles, strict=True):
        side = math.sin(angle)
        label.set_horizontalalignment("center" if abs(side) < 0.1 else "left" if side > 0 else "right")


def _radar_categories(axes: Axes, rows: list[Row], angles: list[float], low: int, high: int) -> None:
    """Tints the sector of every other category and names all of them far outside."""
    categories = {known.task: known.category for known in BENCHMARKS}
    half = math.pi / len(rows)
    for index, category in enumerate(CATEGORIES):
        own = [angle for angle, row in zip(angles, rows, strict=True) if categories[row.tasks[0]] == category]
        if own:
            first, last = own[0] - half, own[-1] + half
            axes.axvspan(first, last, color=GREY, alpha=0.12 if index % 2 else 0, linewidth=0, zorder=0)
            radius = low + 1.4 * (high - low)
            axes.text((first + last) / 2, radius, category, color=GREY, weight="bold", ha="center", va="center")


def _radar_legend(figure: Figure, report: Report, runs: list[str]) -> None:
    """Lines with the names of the runs and, as far as they are given, their averages in columns."""
    averages = [row for row in report.averages if row.name in (*CATEGORIES, OVERALL) and row.scores]
    width = max(map(len, runs))
    handles, labels = [Line2D([], [], linestyle="none")], ["".ljust(width)]
    labels[0] += "".join(f"  {row.label}" for row in averages)
    for index, run in enumerate(runs):
        handles.append(Line2D([], [], color=COLOURS[index], marker=MARKERS[index], markersize=4.5, linewidth=1.6))
        cells = [f"{row.scores[run].value:.1f}" if run in row.scores else "-" for row in averages]
        padded = (f"  {cell.rjust(len(row.label))}" for cell, row in zip(cells, averages, strict=True))
        labels.append(run.ljust(width) + "".join(padded))
    figure.legend(handles, labels, loc="outside lower center", frameon=False, prop={"family": "monospace", "size": 9})
