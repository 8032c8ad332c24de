"""Scores with 95% intervals from what single documents scored, and the differences of scores.

A document scores [points, of]: 0 to 1 of 1 where the score is a mean, the judge's points for the model and for its
reference where it is a ratio of sums. A score is scale * sum(points) / sum(of), on [0, 100] with the scale 100; a task
with a unit of its own has another scale, and may have a value alone, without an interval.

Legend: n documents, R resamples.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from zlib import crc32

import numpy as np

Z95 = 1.959963984540054  # two-sided 95% quantile of the normal distribution
RESAMPLES, SEED = 2000, 0
BLOCK = 2**20  # documents drawn at a time


@dataclass(frozen=True)
class Score:
    """A score and its 95% interval, None where there is none, on [0, 100] if in percent, else in a unit of its own.

    documents: how many it is over; the sum, for an average.
    """

    value: float
    low: float | None
    high: float | None
    documents: int
    interval: str  # "wilson" | "bootstrap" | "none"
    percent: bool = True

    def __str__(self) -> str:
        style = ".1f" if self.percent else ".4g"
        if self.low is None or self.high is None:
            return f"{self.value:{style}}"
        return f"{self.value:{style}} [{self.low:{style}}, {self.high:{style}}]"


@dataclass(frozen=True)
class Difference:
    """A score minus the reference's, and its 95% interval from the paired bootstrap."""

    value: float
    low: float
    high: float
    percent: bool = True

    def __str__(self) -> str:
        if not self.percent:
            return f"{self.value:+.4g} [{self.low:+.4g}, {self.high:+.4g}]"
        value, low, high = (round(number, 1) + 0.0 for number in (self.value, self.low, self.high))  # no -0.0
        return f"{value:+.1f} [{low:+.1f}, {high:+.1f}]"


def resample(task: str, documents_RN2: np.ndarray, scale: float = 100.0) -> np.ndarray:
    """The scores of several runs on the same n documents, over R draws of n documents with replacement.

    A draw takes the same documents for every run, so that scores of one draw may be subtracted. Draws depend on the
    task's name and on n alone: a run has the same interval in whichever company it is shown, and the draws of
    different tasks are independent.

    documents_RN2: (runs, n, 2), [points, of] of each document. Returns (runs, R); NaN where a draw's sum(of) is 0.
    """
    runs, size, _ = documents_RN2.shape
    columns = documents_RN2.transpose(1, 0, 2).reshape(size, 2 * runs).astype(np.float64)
    generator = np.random.default_rng([SEED, crc32(task.encode())])
    together = max(1, BLOCK // size)
    sums = [_sums(generator, min(together, RESAMPLES - start), columns) for start in range(0, RESAMPLES, together)]
    points, of = np.concatenate(sums).T.reshape(runs, 2, RESAMPLES).swapaxes(0, 1)
    return scale * np.divide(points, of, out=np.full_like(points, np.nan), where=of > 0)


def _sums(generator: np.random.Generator, draws: int, columns: np.ndarray) -> np.ndarray:
    """The columns' sums (draws, columns) over the rows of each draw: how often each row is drawn, times the row."""
    size = len(columns)
    drawn = generator.integers(size, size=(draws, size)) + size * np.arange(draws)[:, None]
    counts = np.bincount(drawn.ravel(), minlength=draws * size).reshape(draws, size)
    return counts.astype(columns.dtype) @ columns


def score(documents_N2: np.ndarray, draws: np.ndarray, scale: float = 100.0, percent: bool = True) -> Score:
    """The score of n documents: Wilson's interval where each scores 0 or 1 of 1, else the draws' percentiles."""
    points, of = documents_N2.T
    value = scale * points.sum() / of.sum()
    if percent and np.isin(points, (0, 1)).all() and (of == 1).all():
        low, high = wilson(int(points.sum()), len(points))
        return Score(float(value), 100 * low, 100 * high, len(points), "wilson")
    return Score(float(value), *percentiles(draws), len(points), "bootstrap", percent)


def average(scores: Sequence[Score], draws: np.ndarray | None, weights: Sequence[float] | None = None) -> Score:
    """The mean of several tasks' scores; of one task, its score.

    Args:
        scores: of the tasks, all in one unit.
        draws: (R,), the mean of the tasks', weighted alike; None where a task has none.
        weights: of the tasks, equal by default.
    """
    if len(scores) == 1:
        return scores[0]
    weights = [1.0] * len(scores) if weights is None else weights
    value = sum(weight * part.value for weight, part in zip(weights, scores, strict=True)) / sum(weights)
    documents, percent = sum(part.documents for part in scores), all(part.percent for part in scores)
    if draws is None:
        return Score(value, None, None, documents, "none", percent)
    return Score(value, *percentiles(draws), documents, "bootstrap", percent)


def difference(score: Score, reference: Score, draws: np.ndarray, reference_draws: np.ndarray) -> Difference:
    """What `score` has more than `reference`; the draws of both took the same documents."""
    return Difference(score.value - reference.value, *percentiles(draws - reference_draws), score.percent)


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """Wilson's score interval (1927) for a proportion, at 95%."""
    share, z2 = successes / trials, Z95**2
    centre = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    half = Z95 * np.sqrt(share * (1 - share) / trials + z2 / (4 * trials**2)) / (1 + z2 / trials)
    return max(0.0, float(centre - half)), min(1.0, float(centre + half))


def percentiles(draws: np.ndarray) -> tuple[float, float]:
    """The ends of the 95% interval; draws that are NaN do not count."""
    low, high = np.nanpercentile(draws, [2.5, 97.5])
    return float(low), float(high)
