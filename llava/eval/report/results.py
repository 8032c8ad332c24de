"""What runs scored in each task, with draws for intervals: of benchmarks, of other tasks, of lmms-eval's groups."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from llava.eval.benchmarks import BENCHMARKS
from llava.eval.headline import Headline
from llava.eval.report import intervals
from llava.eval.report.intervals import Score
from llava.eval.store import TaskRun

Tasks = Mapping[str, Mapping[str, TaskRun]]  # run -> task
Results = dict[tuple[str, str], dict[str, "Result"]]  # (task, metric) -> run


@dataclass(frozen=True)
class Result:
    """A run's score in one metric, its draws (R,), and a hash of the documents: equal ones are drawn together.

    draws: None where only the value is known.
    """

    score: Score
    draws: np.ndarray | None
    documents: str


def results_of(task: str, metric: str, tasks: Tasks, scale: float = 100.0, percent: bool = True) -> dict[str, Result]:
    """Of every run that has the metric; runs that scored the same documents are drawn together."""
    groups: dict[str, dict[str, np.ndarray]] = {}
    for name, of_run in tasks.items():
        if task in of_run and metric in of_run[task].scores:
            scores = of_run[task].scores[metric]
            pairs = [score if isinstance(score, tuple) else (score, 1.0) for score in scores]
            groups.setdefault(of_run[task].documents[metric], {})[name] = np.array(pairs)
    results = {}
    for documents, group in groups.items():
        draws = intervals.resample(f"{task} {metric}", np.stack(list(group.values())), scale)
        for (name, scores_N2), row in zip(group.items(), draws, strict=True):
            results[name] = Result(intervals.score(scores_N2, row, scale, percent), row, documents)
    return results


def other_results(tasks: Tasks) -> Results:
    """Of the tasks that are no benchmark: (task, metric) -> run -> result."""
    benchmarks = {row.task for row in BENCHMARKS}
    metrics = {
        (task, metric): None
        for of_run in tasks.values()
        for task, run in of_run.items()
        for metric in ([run.headline.metric] if run.headline else run.scores)
        if task not in benchmarks
    }
    return {(task, metric): _task_results(task, metric, tasks) for task, metric in metrics}


def _task_results(task: str, metric: str, tasks: Tasks) -> dict[str, Result]:
    """On [0, 100] where all that any run's documents scored lies in [0, 1]; else in the unit of lmms-eval's values."""
    results = results_of(task, metric, tasks, *unit_of(task, metric, tasks))
    for name, headline in _headlines(task, metric, tasks).items():
        if name not in results:
            run = tasks[name][task]
            score = Score(headline.value, None, None, run.run["documents"], "none", percent=False)
            results[name] = Result(score, None, run.documents[metric])
    return results


def unit_of(task: str, metric: str, tasks: Tasks) -> tuple[float, bool]:
    """(scale, percent) of a task's scores, as results_of takes them."""
    headlines = _headlines(task, metric, tasks).values()
    percent = all(headline.bounded for headline in headlines)
    factors = [headline.factor for headline in headlines if headline.factor is not None]
    return 100.0 if percent else max(factors, default=1.0), percent


def _headlines(task: str, metric: str, tasks: Tasks) -> dict[str, Headline]:
    """Run -> the task's headline, of the runs of which this metric is that."""
    headlines = {name: of_run[task].headline for name, of_run in tasks.items() if task in of_run}
    return {name: headline for name, headline in headlines.items() if headline and headline.metric == metric}


def group_results(tasks: Tasks, benchmarks: Mapping[str, dict[str, Result]], others: Results) -> Results:
    """The means of lmms-eval's groups, as `others`; of the runs that have all tasks of a group, in one unit."""
    groups = {
        group["name"]: group for of_run in tasks.values() for run in of_run.values() for group in run.run["groups"]
    }
    means = {}
    for name, group in groups.items():
        cells = {run: mean for run in tasks if (mean := _group_mean(group, run, tasks, benchmarks, others)) is not None}
        if cells:
            how = ", weighted by documents" if group["by_size"] else ""
            means[name, f"mean of {len(group['tasks'])} tasks{how}"] = cells
    return means


def _group_mean(
    group: dict, run: str, tasks: Tasks, benchmarks: Mapping[str, dict[str, Result]], others: Results
) -> Result | None:
    parts = []
    for task in group["tasks"]:
        headline = tasks[run][task].headline if task in tasks[run] else None
        results = benchmarks.get(task) or (others.get((task, headline.metric)) if headline else None) or {}
        parts.append(results.get(run))
    if None in parts or len({part.score.percent for part in parts}) > 1:
        return None
    weights = [part.score.documents for part in parts] if group["by_size"] else None
    every = [part.draws for part in parts]
    draws = None if any(draw is None for draw in every) else np.average(every, axis=0, weights=weights)
    score = intervals.average([part.score for part in parts], draws, weights)
    return Result(score, draws, " ".join(part.documents for part in parts))


def lower_is_better(tasks: Tasks) -> list[tuple[str, str]]:
    """The (task, metric) of which lower is better."""
    runs = [run for of_run in tasks.values() for run in of_run.values()]
    lower = [(run.task, run.headline.metric) for run in runs if run.headline and not run.headline.higher_is_better]
    return list(dict.fromkeys(lower))
