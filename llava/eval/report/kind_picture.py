"""A report by kind of question as a picture, after the paper's Figures 13, 15 and 17. Needs matplotlib."""

import math
import textwrap

from matplotlib.figure import Figure

from llava.errors import LlavaError
from llava.eval.report.comparison import Row
from llava.eval.report.kind_tables import title
from llava.eval.report.kinds import ALL, KindReport, KindTable
from llava.eval.report.picture import (
    check_runs,
    draw_bars,
    draw_legend,
    draw_spokes,
    radar_range,
    slant_labels,
)

LABEL = 17  # letters of a kind's name in a line
BESIDE = 3  # radars in a row
SLANTED = 5  # groups of bars, above which their names are


def draw_kinds(report: KindReport, style: str) -> Figure:
    """A panel for each task. style: "bar" or "radar".

    Raises LlavaError when there are more runs than can be told apart, or too few kinds for a radar.
    """
    runs = [run for run in report.runs if any(run in row.scores for table in report.tables for row in table.rows)]
    check_runs(runs)
    return _bars(report, runs) if style == "bar" else _radars(report, runs)


def _name(table: KindTable) -> str:
    metric = table.metric if table.higher_is_better else f"{table.metric}, lower is better"
    return f"{table.name} ({metric})"


def _rows(table: KindTable) -> list[Row]:
    """Each kind with the number of its documents in its label."""
    labels = [f"{textwrap.fill(row.kind, LABEL)}\n(n={row.documents})" for row in table.rows]
    return [
        Row(row.kind, label, [table.task], row.scores, {}, row.differences, {})
        for row, label in zip(table.rows, labels, strict=True)
    ]


def _bars(report: KindReport, runs: list[str]) -> Figure:
    figure = Figure(figsize=(13, 1 + 4.6 * len(report.tables)), layout="constrained")
    figure.suptitle(textwrap.fill(title(report), 125), fontsize=11)
    panels = figure.subplots(len(report.tables), 1, squeeze=False)[:, 0]
    for axes, table in zip(panels, report.tables, strict=True):
        rows = _rows(table)
        draw_bars(axes, rows, runs, values=len(rows) * len(runs) <= 24)
        axes.set_title(_name(table), fontsize=10)
        if len(rows) > SLANTED:
            slant_labels(axes)
    draw_legend(figure, axes, runs)
    return figure


def _radars(report: KindReport, runs: list[str]) -> Figure:
    """Of each task a spoke for each kind that every run has; those of a table with fewer than three have no shape."""
    shapes = []
    for table in report.tables:
        in_table = [run for run in runs if any(run in row.scores for row in table.rows)]
        rows = [row for row in _rows(table) if row.name != ALL and all(run in row.scores for run in in_table)]
        if len(rows) >= 3 and all(score.percent for row in rows for score in row.scores.values()):
            shapes.append((table, in_table, rows))
    if not shapes:
        raise LlavaError("a radar needs 3 kinds that every run has, of scores on [0, 100]; draw bars")
    columns = min(BESIDE, len(shapes))
    lines = math.ceil(len(shapes) / columns)
    figure = Figure(figsize=(max(7.5, 5.6 * columns), 1 + 5.6 * lines), layout="constrained")
    figure.suptitle(textwrap.fill(title(report), 55 * columns), fontsize=11)
    figure.get_layout_engine().set(w_pad=0.3, h_pad=0.25)
    for place, (table, in_table, rows) in enumerate(shapes, start=1):
        axes = figure.add_subplot(lines, columns, place, projection="polar")
        low, high = radar_range(rows, in_table)
        draw_spokes(axes, rows, in_table, [runs.index(run) for run in in_table], low, high, size=8)
        axes.set_title(f"{_name(table)}, {low} to {high}", fontsize=10, pad=22)
    draw_legend(figure, None, runs)
    return figure
