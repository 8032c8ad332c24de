"""The table of results: one column per run, one row per task and metric, each score with its 95% interval.

Scores are shown on [0, 100]. The interval is Wilson's where every document scores 0 or 1, and the percentile bootstrap
over documents (seeded) elsewhere.
"""

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from llava.errors import LlavaError
from llava.eval.store import TaskRun, load_run

Z95 = 1.959963984540054  # two-sided 95% quantile of the normal distribution
RESAMPLES, SEED = 2000, 0


@dataclass(frozen=True)
class Score:
    """A mean over documents and its 95% interval, all on [0, 100]."""

    value: float
    low: float
    high: float
    documents: int
    interval: str  # "wilson" | "bootstrap"

    def __str__(self) -> str:
        return f"{self.value:.1f} [{self.low:.1f}, {self.high:.1f}] n={self.documents}"


@dataclass(frozen=True)
class Report:
    """runs: for each column, for each task, its "run" block. rows: (task, metric) -> column -> score."""

    runs: dict[str, dict[str, dict]]
    rows: dict[tuple[str, str], dict[str, Score]]


def score(values: list[float]) -> Score:
    """The mean of per-document scores in [0, 1] with its interval. Raises LlavaError outside that range."""
    if not all(0.0 <= value <= 1.0 for value in values):
        raise LlavaError(f"scores must lie in [0, 1], found {min(values)} to {max(values)}")
    if set(values) <= {0.0, 1.0}:
        low, high = wilson(int(sum(values)), len(values))
        interval = "wilson"
    else:
        low, high = bootstrap(values)
        interval = "bootstrap"
    return Score(100 * sum(values) / len(values), 100 * low, 100 * high, len(values), interval)


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """Wilson's score interval (1927) for a proportion, at 95%."""
    share, z2 = successes / trials, Z95**2
    centre = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    half = Z95 * np.sqrt(share * (1 - share) / trials + z2 / (4 * trials**2)) / (1 + z2 / trials)
    return max(0.0, float(centre - half)), min(1.0, float(centre + half))


def bootstrap(values: list[float]) -> tuple[float, float]:
    """The percentile bootstrap interval of the mean, at 95%, from a fixed seed."""
    generator = np.random.default_rng(SEED)
    scores = np.asarray(values)
    means = [scores[generator.integers(len(scores), size=len(scores))].mean() for _ in range(RESAMPLES)]
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def build_report(folders: list[Path]) -> Report:
    """Reads the run folders; a column is called by its folder's name. Raises LlavaError when two share a name."""
    runs: dict[str, list[TaskRun]] = {}
    for folder in folders:
        name = folder.resolve().name
        if name in runs:
            raise LlavaError(f"{folder}: another run is already called {name!r}; rename one of the folders")
        runs[name] = load_run(folder)
    rows: dict[tuple[str, str], dict[str, Score]] = {}
    for name, tasks in runs.items():
        for task in tasks:
            for metric, values in task.scores.items():
                rows.setdefault((task.task, metric), {})[name] = score(values)
    return Report({name: {task.task: task.run for task in tasks} for name, tasks in runs.items()}, rows)


def render_text(report: Report) -> str:
    """The table with aligned columns, for the terminal."""
    grid = _grid(report)
    widths = [max(map(len, column)) for column in zip(*grid, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in grid]
    rule = "  ".join("-" * width for width in widths)
    return "\n".join([lines[0], rule, *lines[1:], "", *_notes(report)]) + "\n"


def render_markdown(report: Report) -> str:
    """The table as GitHub Markdown."""
    lines = [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in _grid(report)]
    rule = "|" + " --- |" * (len(report.runs) + 2)
    notes = [f"- {note}" for note in _notes(report)]
    return "\n".join([lines[0], rule, *lines[1:], "", *notes]) + "\n"


def render_json(report: Report) -> str:
    """{"runs": {name: {task: run block}}, "rows": [{task, metric, scores: {name: {value, low, high, ...}}}]}"""
    rows = [
        {"task": task, "metric": metric, "scores": {name: asdict(cell) for name, cell in cells.items()}}
        for (task, metric), cells in report.rows.items()
    ]
    return json.dumps({"runs": report.runs, "rows": rows}, indent=2) + "\n"


def _grid(report: Report) -> list[list[str]]:
    rows = [
        [task, metric, *(str(cells[name]) if name in cells else "-" for name in report.runs)]
        for (task, metric), cells in report.rows.items()
    ]
    return [["task", "metric", *report.runs], *rows]


def _notes(report: Report) -> list[str]:
    intervals = f"Wilson for 0/1 scores, bootstrap ({RESAMPLES} resamples, seed {SEED}) for others"
    notes = [f"Scores on [0, 100] with 95% intervals over n documents: {intervals}."]
    for name, tasks in report.runs.items():
        for task, run in tasks.items():
            images = "images replaced by noise" if run["image_noise"] else "images as they are"
            versions = ", ".join(f"{package} {version}" for package, version in run["versions"].items())
            notes.append(
                f"{name}, {task} v{run['task_version']}: {run['model']} (weights {run['weights']}), {images}, "
                f"{run['dtype']} on {run['device']}, {run['date']}; {versions}"
            )
    return notes


def main(argv: list[str]) -> int:
    """`llava eval report RUN ...`: prints the table of finished runs, side by side."""
    parser = argparse.ArgumentParser(prog="llava eval report", description="Table of one or several evaluation runs.")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder written by llava eval --out")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="also write the table as Markdown")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the table as JSON")
    args = parser.parse_args(argv)
    report = build_report(args.runs)
    for file, render in ((args.markdown, render_markdown), (args.json, render_json)):
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(render(report), encoding="utf-8")
    print(render_text(report), end="")
    return 0
