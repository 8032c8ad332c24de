"""Scores of rows over documents and seeds, and their differences to one row: what the table says, and how sure it is.

Two intervals go with a difference, both at 95%. The paired bootstrap draws documents and seeds together, with
replacement, the same for every row: a draw's score is the mean over the drawn seeds of the score on the drawn
documents. With few seeds it is too narrow, since a draw never shows a seed that was not run; so Student's t over the
seeds' own differences stands beside it. A difference is told as one only where both leave out 0.

Legend: S seeds, n documents, R resamples.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from llava.eval.report import intervals
from llava.eval.report.intervals import RESAMPLES, SEED, Difference, Score

# Two-sided 95% quantiles of Student's t with 1, 2, .. degrees of freedom.
STUDENT_95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)


@dataclass(frozen=True)
class RowScore:
    """A row's score, in percent.

    score: the mean over the seeds, with the bootstrap's interval. by_seed: of each seed. by_kind: of the questions of
    each kind, the mean over the seeds. difference: to the reference, with the bootstrap's interval. difference_t: the
    same with Student's. difference_by_seed: of each seed. Those are None or empty for the reference, and Student's with
    one seed.
    """

    score: Score
    by_seed: list[float]
    by_kind: dict[str, float]
    difference: Difference | None = None
    difference_t: Difference | None = None
    difference_by_seed: Sequence[float] = ()

    @property
    def differs(self) -> bool:
        """Whether both intervals of the difference leave out 0."""
        both = (self.difference, self.difference_t)
        return all(one is not None and (one.low > 0 or one.high < 0) for one in both)


def score_rows(
    name: str, documents: Sequence[str], kinds: Sequence[str], right: Mapping[str, np.ndarray], reference: str
) -> dict[str, RowScore]:
    """The scores of all rows of one data set.

    Args:
        name: of the data set; with the numbers of documents and seeds it decides the draws.
        documents: of each question.
        kinds: of each question.
        right: {row: (S, questions)}, 1 where the answer was right; of every row the same seeds.
        reference: the row that differences are to.
    """
    names, of_document = np.unique(documents, return_inverse=True)
    size, (seeds, _) = len(names), right[reference].shape
    questions = np.bincount(of_document, minlength=size)
    points = np.stack(
        [[np.bincount(of_document, weights, minlength=size) for weights in of_row] for of_row in right.values()]
    )
    pairs = np.stack([points, np.broadcast_to(questions, points.shape)], axis=-1)  # (rows, S, n, 2)
    by_documents = intervals.resample(name, pairs.reshape(-1, size, 2)).reshape(len(right), seeds, RESAMPLES)
    draws = np.einsum("rsd,ds->rd", by_documents, _seed_weights(seeds))
    of_row = dict(zip(right, draws, strict=True))
    by_seed = {row: 100 * answers.mean(axis=1) for row, answers in right.items()}
    scores = {}
    for row, answers in right.items():
        score = Score(float(by_seed[row].mean()), *intervals.percentiles(of_row[row]), size, "bootstrap")
        by_kind = {kind: float(100 * answers[:, np.array(kinds) == kind].mean()) for kind in dict.fromkeys(kinds)}
        scores[row] = RowScore(score, by_seed[row].tolist(), by_kind)
    base = scores[reference].score
    for row in right.keys() - {reference}:
        differences = by_seed[row] - by_seed[reference]
        scores[row] = RowScore(
            scores[row].score,
            scores[row].by_seed,
            scores[row].by_kind,
            intervals.difference(scores[row].score, base, of_row[row], of_row[reference]),
            student_difference(differences),
            differences.tolist(),
        )
    return scores


def _seed_weights(seeds: int) -> np.ndarray:
    """How much each seed weighs in each draw, (R, S): the share of S draws with replacement."""
    generator = np.random.default_rng([SEED, seeds])
    drawn = generator.integers(seeds, size=(RESAMPLES, seeds))
    return (drawn[:, :, None] == np.arange(seeds)).mean(axis=1)


def student_difference(differences: np.ndarray) -> Difference | None:
    """The mean of the seeds' differences and its 95% interval by Student's t; None for one seed."""
    seeds = len(differences)
    if seeds < 2:
        return None
    mean, spread = float(differences.mean()), float(differences.std(ddof=1))
    half = student_95(seeds - 1) * spread / seeds**0.5
    return Difference(mean, mean - half, mean + half)


def student_95(freedom: int) -> float:
    """The two-sided 95% quantile of Student's t; beyond the table by its expansion at the normal distribution's."""
    if freedom <= len(STUDENT_95):
        return STUDENT_95[freedom - 1]
    z = intervals.Z95
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
