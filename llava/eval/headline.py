"""The one score that stands for a task.

A benchmark's is what its row names. Any other task of lmms-eval's is scored by its own headline metric: the one that
the group names of which it was asked as a part, else the first of its metric_list that lmms-eval gives a number for.
What single documents scored (a number, or the entry `score` of what process_results gives) counts where lmms-eval's
value is their mean; else the value stands alone, without an interval.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real

from llava.errors import LlavaError
from llava.eval.benchmark_row import Benchmark

AGREEMENT = 1e-6  # the harness's mean and ours may differ by rounding, not by more
BENCHMARK_AGREEMENT = 1e-4  # on [0, 1]: some benchmarks' values are rounded to 4 or 5 digits
FACTORS = (1.0, 100.0)  # some tasks give percents


@dataclass(frozen=True)
class Headline:
    """Of a task without a row. value: as lmms-eval gives it.

    factor: value = factor x the mean of what the documents scored; None where it is no such mean. bounded: whether
    every document scored from 0 to 1, so that the score can stand on [0, 100].
    """

    metric: str
    value: float
    higher_is_better: bool
    factor: float | None
    bounded: bool

    @property
    def note(self) -> str | None:
        """What a reader of the score has to know."""
        if self.factor is None:
            return f"{self.metric} is lmms-eval's own value, no mean of what documents scored: it has no interval"
        return None


def benchmark_headline(row: Benchmark, values: Mapping[str, object], rows: Sequence[Mapping]) -> float:
    """A benchmark's score on [0, 100].

    Args:
        row: of the benchmark.
        values: the harness's, by metric and filter.
        rows: of the documents, with their scores.

    Raises:
        LlavaError: when there is no value, or the documents' scores give another.
    """
    value = values.get(row.metric)
    if not isinstance(value, int | float):
        raise LlavaError(f"task {row.task}: lmms-eval gives no score ({row.metric}: {value!r})")
    score = row.score(value, len(rows))
    metric = headline_metric(row)
    mean = 100 * mean_score([line["scores"][metric] for line in rows if metric in line["scores"]])
    if abs(mean - score) > 100 * BENCHMARK_AGREEMENT:
        raise LlavaError(f"task {row.task}: the documents' scores give {mean} but lmms-eval's value gives {score}")
    return score


def task_headline(
    task: str,
    metrics: Mapping[str, bool],
    values: Mapping[str, object],
    filter_name: str,
    rows: Sequence[Mapping],
    preferred: Sequence[str] = (),
) -> Headline:
    """The headline of a task that has no row.

    Args:
        task: its name.
        metrics: of its metric_list, in order, and whether higher is better.
        values: the harness's, by metric and filter.
        filter_name: the first of the task's filters.
        rows: of the documents, with their scores.
        preferred: metrics that groups of the task name as its headline.

    Raises:
        LlavaError: when no metric has a number.
    """
    named = [metric for metric in preferred if metric in metrics]
    for metric in [*named, *metrics]:
        value = values.get(f"{metric},{filter_name}")
        if is_number(value):
            scores = [line["scores"][metric] for line in rows if is_number(line["scores"].get(metric))]
            factor = _factor(value, scores) if len(scores) == len(rows) else None
            bounded = factor is not None and all(0 <= score <= 1 for score in scores)
            return Headline(metric, float(value), metrics[metric], factor, bounded)
    given = ", ".join(f"{metric}: {values.get(f'{metric},{filter_name}')!r:.60}" for metric in metrics)
    raise LlavaError(f"task {task}: lmms-eval gives no score ({given or 'it has no metric'})")


def _factor(value: float, scores: Sequence[float]) -> float | None:
    mean = math.fsum(scores) / len(scores)
    tolerance = AGREEMENT * max(1.0, abs(value))
    return next((factor for factor in FACTORS if abs(factor * mean - value) <= tolerance), None)


def document_score(value: object) -> float | None:
    """A number in what process_results gives for a document, or in its entry `score`, which lmms-eval reads so, too."""
    value = value["score"] if isinstance(value, dict) and "score" in value else value
    return float(value) if isinstance(value, bool) or is_number(value) else None


def is_number(value: object) -> bool:
    """Whether the value is a finite number, and not a truth value."""
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def headline_metric(row: Benchmark) -> str:
    """Its name in a document's scores: without the harness's filter."""
    return row.metric.split(",")[0]


def mean_score(scores: Sequence[float | Sequence[float]]) -> float:
    """The mean, or sum(points) / sum(of)."""
    pairs = [score if isinstance(score, Sequence) else (score, 1.0) for score in scores]
    return math.fsum(points for points, _ in pairs) / math.fsum(of for _, of in pairs)
