"""Scores and intervals against literal numbers, a slow bootstrap written apart, and cases with a formula."""

import numpy as np
import pytest
from scipy import stats

from llava.bench.statistics import score_rows, student_95, student_difference

KINDS = ["place", "read"]


def made_up(documents: int, seeds: int, shift: float, spread: float = 0.1, seed: int = 0) -> dict[str, np.ndarray]:
    """Answers of two rows to two questions a document: documents and seeds are easy or hard for both rows alike."""
    random = np.random.default_rng(seed)
    ease = 0.5 + random.normal(0, 0.2, (1, documents, 1)) + random.normal(0, spread, (seeds, 1, 1))
    drawn = random.random((2, seeds, documents, 2))
    right = [(drawn[row] < ease + row * shift).astype(int).reshape(seeds, -1) for row in (0, 1)]
    return {"none": right[0], "other": right[1]}


def scored(right: dict[str, np.ndarray], documents: int):
    names = [str(document) for document in range(documents) for _ in KINDS]
    return score_rows("pages", names, KINDS * documents, right, "none")


def test_scores_are_means_of_what_was_right():
    right = {"none": np.array([[1, 0, 0, 0], [1, 1, 0, 0]]), "other": np.array([[1, 1, 1, 0], [1, 1, 1, 1]])}
    scores = scored(right, documents=2)
    assert scores["none"].score.value == 37.5
    assert scores["none"].by_seed == [25, 50]
    assert scores["none"].by_kind == {"place": 50, "read": 25}
    assert scores["none"].difference is None
    other = scores["other"]
    assert (other.score.value, other.score.documents, other.by_seed) == (87.5, 2, [75, 100])
    assert (other.difference.value, other.difference_t.value, other.difference_by_seed) == (50, 50, [50, 50])


def test_the_bootstrap_agrees_with_a_slow_one():
    """Drawn one by one in loops, with another generator and more draws."""
    documents, seeds = 30, 3
    right = made_up(documents, seeds, shift=0.15, spread=0.15)
    gained = (right["other"] - right["none"]).reshape(seeds, documents, 2).sum(axis=2).tolist()
    random, values = np.random.default_rng(7), []
    for _ in range(4000):
        drawn_documents = random.integers(documents, size=documents)
        total = sum(
            gained[seed][document] for seed in random.integers(seeds, size=seeds) for document in drawn_documents
        )
        values.append(100 * total / (2 * documents * seeds))
    low, high = np.percentile(values, [2.5, 97.5])
    difference = scored(right, documents)["other"].difference
    assert (difference.low, difference.high) == pytest.approx((low, high), abs=1.0)
    assert high - low > 10  # so that 1 is little


def test_seeds_that_answer_alike_leave_the_documents_interval():
    """A formula: the mean of n differences is normal."""
    documents = 200
    one = made_up(documents, 1, shift=0.1)
    right = {row: np.repeat(answers, 3, axis=0) for row, answers in one.items()}
    scores = scored(right, documents)
    each = 100 * (one["other"] - one["none"])[0].reshape(documents, 2).mean(axis=1)
    half = 1.96 * each.std() / documents**0.5
    difference = scores["other"].difference
    assert (difference.low, difference.high) == pytest.approx((each.mean() - half, each.mean() + half), abs=0.5)
    assert scores["other"].difference_t.low == scores["other"].difference_t.high == difference.value


def test_documents_that_are_alike_leave_the_seeds():
    """The draws of three seeds have ten means; with two of three kinds of seeds the ends are known."""
    right = {"none": np.zeros((3, 40), int), "other": np.zeros((3, 40), int)}
    right["other"][1], right["other"][2] = 1, 1
    difference = scored(right, documents=20)["other"].difference
    assert (difference.low, difference.high) == (0, 100)  # all three draws are the first seed: 1 in 27, above 2.5%
    assert difference.value == pytest.approx(200 / 3)


def test_the_pairing_takes_out_what_rows_have_in_common():
    documents = 300
    right = made_up(documents, 3, shift=0.05, spread=0.2, seed=3)
    scores = scored(right, documents)
    apart = [scores[row].score.high - scores[row].score.low for row in right]
    assert scores["other"].difference.high - scores["other"].difference.low < 0.6 * min(apart)


def test_a_row_is_drawn_alike_in_any_company():
    right = made_up(40, 3, shift=0.2)
    alone = scored({"none": right["none"]}, 40)["none"]
    assert alone == scored(right, 40)["none"]


@pytest.mark.parametrize("freedom", [1, 2, 3, 9, 15, 16, 30, 200])
def test_students_quantiles(freedom):
    assert student_95(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=4e-4)


def test_students_interval():
    interval = student_difference(np.array([1.0, 2.0, 6.0]))
    low, high = stats.t.interval(0.95, 2, loc=3, scale=stats.sem([1, 2, 6]))
    assert (interval.value, interval.low, interval.high) == pytest.approx((3, low, high), abs=2e-3)
    assert student_difference(np.array([1.0])) is None


@pytest.mark.parametrize(("bootstrap", "by_seed", "differs"), [(0.4, 0.0, True), (0.0, 0.0, False)])
def test_what_differs_does_so_by_both(bootstrap, by_seed, differs):
    right = made_up(200, 3, shift=bootstrap, spread=by_seed)
    assert scored(right, 200)["other"].differs == differs
    assert not scored(right, 200)["none"].differs


def test_three_seeds_that_disagree_tell_no_difference():
    """The bootstrap alone would: none of its draws shows a seed that was not run."""
    right = {"none": np.zeros((3, 400), int), "other": np.zeros((3, 400), int)}
    for seed, share in enumerate((2, 60, 20)):
        right["other"][seed, :share] = 1
    other = scored(right, documents=200)["other"]
    assert other.difference.low > 0 > other.difference_t.low
    assert not other.differs
