"""Scores and intervals against values by hand, formulas, and a slow bootstrap."""

import random

import numpy as np
import pytest

from llava.eval.report import intervals


def pairs(values):
    return np.array([[value, 1.0] for value in values])


def score_of(documents_N2, task="task"):
    (draws,) = intervals.resample(task, documents_N2[None])
    return intervals.score(documents_N2, draws), draws


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        # z = 1.959964, centre (p + z^2/2n) / (1 + z^2/n), half z sqrt(p(1-p)/n + z^2/4n^2) / (1 + z^2/n)
        (7, 10, 0.396778, 0.892209),
        (0, 20, 0.0, 0.161125),  # z^2 / (n + z^2)
        (20, 20, 0.838875, 1.0),
        (1, 1, 0.206549, 1.0),
    ],
)
def test_wilson(successes, trials, low, high):
    assert intervals.wilson(successes, trials) == pytest.approx((low, high), abs=1e-6)


def test_score_of_zeros_and_ones_is_wilson():
    score, _ = score_of(pairs([1.0] * 7 + [0.0] * 3))
    assert (score.value, score.documents, score.interval) == (pytest.approx(70.0), 10, "wilson")
    assert str(score) == "70.0 [39.7, 89.2]"


def test_score_of_fractions_is_a_bootstrap_around_the_mean():
    score, _ = score_of(pairs([0.0, 0.5, 1.0, 0.75] * 50))
    assert (score.value, score.interval) == (pytest.approx(56.25), "bootstrap")
    # The standard deviation of the values is 0.36976, of their mean 0.026146: the normal interval is 56.25 -+ 5.12.
    assert score.low == pytest.approx(56.25 - 5.12, abs=0.6)
    assert score.high == pytest.approx(56.25 + 5.12, abs=0.6)


def test_ratio_resamples_pairs_of_points():
    generator = np.random.default_rng(5)
    points = generator.uniform(2, 9, 60)
    documents = np.stack([points, points + generator.uniform(0, 3, 60)], axis=1)
    score, _ = score_of(documents)
    assert score.value == pytest.approx(100 * documents[:, 0].sum() / documents[:, 1].sum())
    draw, slow = random.Random(1), []
    for _ in range(4000):
        drawn = [documents[draw.randrange(60)] for _ in range(60)]
        slow.append(100 * sum(pair[0] for pair in drawn) / sum(pair[1] for pair in drawn))
    slow.sort()
    assert score.low == pytest.approx(slow[100], abs=0.3)
    assert score.high == pytest.approx(slow[3900], abs=0.3)
    assert score_of(np.array([[3, 10], [8, 9]]))[0].value == pytest.approx(1100 / 19)


def test_references_of_no_points_leave_only_the_draws_that_can_be_scored():
    score, draws = score_of(np.array([[0.0, 0.0], [1.0, 2.0]]))
    assert (score.value, score.low, score.high) == (50, 50, 50)
    assert 0.15 < np.isnan(draws).mean() < 0.35  # a quarter draws the first document twice


def test_difference_pairs_the_documents():
    generator = np.random.default_rng(5)
    first = generator.uniform(0, 0.8, 100)
    gain = generator.uniform(-0.1, 0.2, 100)
    runs = np.stack([pairs(first), pairs(first + 0.1), pairs(first + gain)])
    draws = intervals.resample("task", runs)
    scores = [intervals.score(run, row) for run, row in zip(runs, draws, strict=True)]
    constant = intervals.difference(scores[1], scores[0], draws[1], draws[0])
    assert (constant.value, constant.low, constant.high) == pytest.approx((10, 10, 10))
    varying = intervals.difference(scores[2], scores[0], draws[2], draws[0])
    half = 1.96 * 100 * gain.std() / 10
    assert varying.value == pytest.approx(100 * gain.mean())
    assert (varying.low, varying.high) == pytest.approx((varying.value - half, varying.value + half), abs=0.25)
    assert scores[0].high - scores[0].low > 2 * (varying.high - varying.low)
    assert str(intervals.Difference(1.44, -0.26, 3.0)) == "+1.4 [-0.3, +3.0]"
    assert str(intervals.Difference(-0.04, -0.06, 0.0)) == "+0.0 [-0.1, +0.0]"


def test_average_resamples_every_task_by_itself():
    generator = np.random.default_rng(5)
    values = pairs(generator.uniform(0, 1, 100))  # the same scores in both tasks: equal draws would not average out
    scores, draws = zip(score_of(values, "one"), score_of(values, "two"), strict=True)
    average = intervals.average(scores, np.mean(draws, axis=0))
    half = 1.96 * 100 * values[:, 0].std() / 10 / np.sqrt(2)
    assert (average.value, average.documents) == (pytest.approx(scores[0].value), 200)
    assert average.high - average.low == pytest.approx(2 * half, rel=0.08)
    assert intervals.average(scores[:1], draws[0]) is scores[0]


def test_a_run_has_the_same_interval_in_any_company():
    generator = np.random.default_rng(5)
    run, other = pairs(generator.uniform(0, 1, 30)), pairs(generator.uniform(0, 1, 30))
    (alone,) = intervals.resample("task", run[None])
    beside = intervals.resample("task", np.stack([other, run]))[1]
    assert np.allclose(alone, beside, rtol=0, atol=1e-9)
    assert not np.allclose(alone, intervals.resample("another", run[None])[0], atol=0.1)
