"""The benchmarks of a report as a picture, after the paper's Figure 9. Needs matplotlib."""

import math
import textwrap
from collections.abc import Iterable
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from llava.errors import LlavaError
from llava.eval.benchmarks import BENCHMARKS, CATEGORIES
from llava.eval.report.comparison import OVERALL, Report, Row, metric_label
from llava.eval.report.intervals import Score

# Okabe and Ito's colours, told apart with any colour vision; markers and hatches help where colours are lost.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
HATCHES = ("", "//", "..", "\\\\", "xx", "--", "oo")
GREY = "#777777"
FEWEST = 5  # groups of bars that a panel has room for at least
ROOM = 0.35  # inches around a radar, for the names of categories


def draw(report: Report, style: str) -> Figure:
    """The scores of the runs, of benchmarks and of other tasks. style: "bar" or "radar".

    Raises LlavaError when there is nothing to draw, or more runs than can be told apart.
    """
    tasks = _task_rows(report)
    runs = [run for run in report.runs if any(run in row.scores for row in (*report.benchmarks, *tasks))]
    if not runs:
        raise LlavaError("none of the runs has a score, there is nothing to draw")
    check_runs(runs)
    title = report.title or ", ".join(dict.fromkeys(row.tasks[0] for row in tasks))
    return _bars(report, tasks, runs, title) if style == "bar" else _radar(report, tasks, runs, title)


def check_runs(runs: list[str]) -> None:
    """Raises LlavaError when there are more runs than can be told apart."""
    if len(runs) > len(COLOURS):
        raise LlavaError(f"{len(runs)} runs cannot be told apart in a picture, {len(COLOURS)} can")


def _task_rows(report: Report) -> list[Row]:
    """The scores of tasks that are no benchmark; where there are several, labels begin with the task."""
    several = len({task for task, _ in report.rows}) > 1
    rows = []
    for (task, metric), scores in report.rows.items():
        label = metric_label(report, task, metric)
        if scores:
            rows.append(Row(metric, f"{task} {label}" if several else label, [task], scores, {}, {}, {}))
    return rows


def _in_percent(row: Row) -> bool:
    return all(score.percent for score in row.scores.values())


def _bars(report: Report, tasks: list[Row], runs: list[str], title: str) -> Figure:
    """Averages above, with their values; then benchmarks, then other tasks, those with units of their own last.

    All have 95% intervals where there are any.
    """
    title = textwrap.fill(title, 125)
    averages = [row for row in report.averages if row.name in (*CATEGORIES, OVERALL) and row.scores]
    benchmarks = [row for row in report.benchmarks if row.scores]
    scaled = [row for row in tasks if _in_percent(row)]
    others = [[row] for row in tasks if not _in_percent(row)]
    panels = [rows for rows in (averages, benchmarks, scaled, *others) if rows]
    height = (1, 5.5, 9)[len(panels)] if len(panels) < 3 else 1 + 4 * len(panels)
    height += 0.2 * title.count("\n")
    figure = Figure(figsize=(13, height), layout="constrained")
    figure.suptitle(title, fontsize=11)
    for axes, rows in zip(figure.subplots(len(panels), 1, squeeze=False)[:, 0], panels, strict=True):
        draw_bars(axes, rows, runs, values=len(rows) * len(runs) <= 20 or rows is averages)
        if rows is not averages and len(rows) > 5:
            slant_labels(axes)
        if rows is scaled and len(panels) > 1:
            axes.set_xlabel(", ".join(dict.fromkeys(row.tasks[0] for row in scaled)))
    draw_legend(figure, axes, runs)
    return figure


def slant_labels(axes: Axes) -> None:
    """Turns the names below the bars, where there are many."""
    axes.tick_params(axis="x", labelrotation=35)
    for label in axes.get_xticklabels():
        label.set(ha="right", rotation_mode="anchor")


def draw_legend(figure: Figure, axes: Axes | None, runs: list[str]) -> None:
    """The names of the runs, below. axes: of bars; None where the runs are lines."""
    handles = _lines(range(len(runs))) if axes is None else axes.get_legend_handles_labels()[0]
    labels = _short(runs, 120)
    columns = max(1, min(len(runs), 4, 150 // (8 + max(map(len, labels)))))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False)


def _lines(places: Iterable[int]) -> list[Line2D]:
    return [Line2D([], [], **_line_look(place)) for place in places]


def _line_look(place: int) -> dict[str, Any]:
    return {"color": COLOURS[place], "marker": MARKERS[place], "markersize": 4.5, "linewidth": 1.6}


def _short(names: list[str], width: int) -> list[str]:
    """The names where they fit in `width`, else of each what is around the place where they begin to differ."""
    if max(map(len, names)) <= width:
        return names
    same = next((place for place, letters in enumerate(zip(*names, strict=False)) if len(set(letters)) > 1), 0)
    first = max(0, same - 10)
    parts = [name[first : first + width - 2] for name in names]
    return [
        ("\u2026" if first else "") + part + ("\u2026" if first + len(part) < len(name) else "")
        for name, part in zip(names, parts, strict=True)
    ]


def draw_bars(axes: Axes, rows: list[Row], runs: list[str], values: bool) -> None:
    """A group of bars per row, one bar per run, in the order of the legend."""
    width, percent = 0.8 / len(runs), all(map(_in_percent, rows))
    scores = [score for row in rows for score in row.scores.values()]
    bottom, top = 1.08 * min(0, *map(_low, scores)), 1.08 * max(map(_high, scores))
    top = max(100, top) if percent else top or 1
    for index, run in enumerate(runs):
        places = [place + (index - (len(runs) - 1) / 2) * width for place in range(len(rows))]
        scores = [row.scores.get(run) for row in rows]
        present = [(place, score) for place, score in zip(places, scores, strict=True) if score is not None]
        heights = [score.value for _, score in present]
        down = [max(0, score.value - _low(score)) for _, score in present]  # rounding can leave less than 0
        up = [max(0, _high(score) - score.value) for _, score in present]
        look = {"color": COLOURS[index], "hatch": HATCHES[index], "edgecolor": "white", "linewidth": 0.4}
        error = {"ecolor": "#333333", "elinewidth": 0.9, "capsize": 1.5}
        axes.bar([place for place, _ in present], heights, width, label=run, yerr=[down, up], error_kw=error, **look)
        for place, score in zip(places, scores, strict=True):
            if score is None:
                axes.text(place, top / 100, "none", rotation=90, ha="center", va="bottom", fontsize=7, color=GREY)
            elif values:
                words = f"{score.value:.1f}" if score.percent else f"{score.value:.4g}"
                axes.text(place, _high(score) + top / 100, words, ha="center", va="bottom", fontsize=8)
    axes.set_ylim(bottom, top)
    if percent:
        axes.set_yticks(range(0, int(top) + 1, 20))
    beside = 0.6 + max(0, FEWEST - len(rows)) / 2  # bars keep a width, and the middle
    axes.set_xlim(-beside, len(rows) - 1 + beside)
    axes.set_xticks(range(len(rows)), [row.label for row in rows])
    axes.set_ylabel("score, 95% interval" if percent else "lmms-eval's value")
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _low(score: Score) -> float:
    return score.value if score.low is None else score.low


def _high(score: Score) -> float:
    return score.value if score.high is None else score.high


def _radar(report: Report, tasks: list[Row], runs: list[str], title: str) -> Figure:
    """A spoke per score that every run has; the averages stand in the legend."""
    tasks = [row for row in tasks if _in_percent(row)]
    given = [*report.benchmarks, *tasks]
    rows = [row for row in given if all(run in row.scores for run in runs)]
    if len(rows) < 3:
        what = "benchmarks" if not tasks else "scores"
        raise LlavaError(f"a radar needs 3 {what} that every run has, these runs have {len(rows)}; draw bars")
    low, high = radar_range(rows, runs)
    scale = f"scores from {low} in the centre to {high} at the rim"
    if len(rows) < len(given):
        scale = f"the {len(rows)} {'scores' if tasks else 'benchmarks'} that every run has; {scale}"
    title = textwrap.fill(title, 105) + "\n" + scale
    figure = Figure(figsize=(11, 9.5 + 0.2 * title.count("\n")), layout="constrained")
    figure.get_layout_engine().set(h_pad=ROOM, w_pad=2 * ROOM)
    figure.suptitle(title, fontsize=11)
    axes = figure.add_subplot(projection="polar")
    angles = draw_spokes(axes, rows, runs, range(len(runs)), low, high)
    _radar_legend(figure, report, runs)
    _radar_categories(figure, axes, rows, angles)
    return figure


def radar_range(rows: list[Row], runs: list[str]) -> tuple[int, int]:
    """What the centre and the rim of a radar of these scores stand for."""
    values = [row.scores[run].value for row in rows for run in runs]
    return max(0, 10 * math.floor(min(values) / 10) - 10), 10 * math.floor(max(values) / 10) + 10


def draw_spokes(
    axes: Axes, rows: list[Row], runs: list[str], places: Iterable[int], low: int, high: int, size: int = 10
) -> list[float]:
    """A spoke for each row and a line for each run, which looks as the legend has it at its place; the angles."""
    angles = [2 * math.pi * index / len(rows) for index in range(len(rows))]
    for place, run in zip(places, runs, strict=True):
        values = [row.scores[run].value for row in rows]
        axes.plot([*angles, angles[0]], [*values, values[0]], **_line_look(place))
    _radar_axes(axes, [row.label for row in rows], angles, low, high, size)
    return angles


def _radar_axes(axes: Axes, names: list[str], angles: list[float], low: int, high: int, size: int) -> None:
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
    axes.tick_params(axis="x", pad=4, labelsize=size)
    for label, angle in zip(axes.get_xticklabels(), angles, strict=True):
        side, up = math.sin(angle), math.cos(angle)
        label.set_horizontalalignment("center" if abs(side) < 0.1 else "left" if side > 0 else "right")
        label.set_verticalalignment("center" if abs(up) < 0.9 else "bottom" if up > 0 else "top")


def _radar_categories(figure: Figure, axes: Axes, rows: list[Row], angles: list[float]) -> None:
    """Tints the sector of every other category and names all of them outside; a task is a category of its own."""
    categories = {row.task: row.category for row in BENCHMARKS}
    names = [categories.get(row.tasks[0], row.tasks[0]) for row in rows]
    half = math.pi / len(rows)
    middles = {}
    for index, category in enumerate(dict.fromkeys(names)):
        inside = [angle for angle, name in zip(angles, names, strict=True) if name == category]
        first, last = inside[0] - half, inside[-1] + half
        axes.axvspan(first, last, color=GREY, alpha=0.12 if index % 2 else 0, linewidth=0, zorder=0)
        middles[category] = (first + last) / 2
    if len(middles) > 1:
        _write_around(figure, axes, middles)


def _write_around(figure: Figure, axes: Axes, names: dict[str, float]) -> None:
    """Writes each name in the direction of its angle, as near to the circle as it overlaps no other text."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # places stay as they are now
    circle = axes.get_window_extent()
    centre_x, centre_y, radius = (circle.x0 + circle.x1) / 2, (circle.y0 + circle.y1) / 2, circle.width / 2
    taken = [label.get_window_extent().padded(8) for label in axes.get_xticklabels()]
    taken.append(figure.legends[0].get_window_extent())
    for name, angle in names.items():
        text = axes.text(0, 0, name, color=GREY, weight="bold", ha="center", va="center", transform=figure.transFigure)
        for distance in range(round(radius) + 10, round(2 * radius), 3):
            place = (centre_x + distance * math.sin(angle), centre_y + distance * math.cos(angle))
            text.set_position(figure.transFigure.inverted().transform(place))
            box = text.get_window_extent()
            nearest = math.hypot(
                min(max(centre_x, box.x0), box.x1) - centre_x, min(max(centre_y, box.y0), box.y1) - centre_y
            )
            if nearest > radius + 5 and not any(box.overlaps(other) for other in taken):
                break
        taken.append(box)


def _radar_legend(figure: Figure, report: Report, runs: list[str]) -> None:
    """Lines with the names of the runs and, as far as they are given, their averages in columns."""
    averages = [row for row in report.averages if row.name in (*CATEGORIES, OVERALL) and row.scores]
    head = "".join(f"  {row.label}" for row in averages)
    names = _short(runs, 124 - len(head))
    width = max(map(len, names))
    handles, labels = [Line2D([], [], linestyle="none")] if head else [], ["".ljust(width) + head] if head else []
    for index, run in enumerate(runs):
        handles += _lines([index])
        cells = [f"{row.scores[run].value:.1f}" if run in row.scores else "-" for row in averages]
        padded = (f"  {cell.rjust(len(row.label))}" for cell, row in zip(cells, averages, strict=True))
        labels.append(names[index].ljust(width) + "".join(padded))
    figure.legend(handles, labels, loc="outside lower center", frameon=False, prop={"family": "monospace", "size": 9})
