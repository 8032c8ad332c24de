"""Every benchmark's real configuration on its twin, through the plugin: scripted models get the scores they earn."""

import pytest

from llava.eval.benchmarks import BENCHMARKS, benchmark
from tests.eval.benchmarks import judged, unjudged
from tests.eval.benchmarks.twins import Twin

TWINS = unjudged.TWINS + judged.TWINS

each_twin = pytest.mark.parametrize("twin", TWINS, ids=lambda twin: twin.task)


def test_every_benchmark_has_a_twin():
    assert sorted(twin.task for twin in TWINS) == sorted(known.task for known in BENCHMARKS)
    assert len(TWINS) == 20


@each_twin
def test_an_oracle_gets_the_highest_score(twin: Twin, evaluate):
    results, rows = evaluate(twin, twin.oracle)
    assert results["run"]["score"] == pytest.approx(twin.highest)
    assert [row["answer"] for row in rows] == twin.oracle or twin.task == "ai2d"  # whose filter takes the letter


@each_twin
def test_a_wrong_model_gets_the_lowest_score(twin: Twin, evaluate):
    """Here also the harness's protocol, and images without the datasets library's notes."""
    results, _ = evaluate(twin, twin.wrong, plain=True, protocol="harness")
    assert results["run"]["score"] == pytest.approx(twin.lowest)
    assert (results["run"]["protocol"], results["run"]["documents"]) == ("harness", len(twin.documents))


@each_twin
def test_a_half_right_model_gets_the_score_computed_by_hand(twin: Twin, evaluate):
    known = benchmark(twin.task)
    results, rows = evaluate(twin, twin.half)
    assert results["run"]["score"] == pytest.approx(twin.score, abs=1e-3)
    assert results["run"]["protocol"] == "paper"
    metric = known.metric.split(",")[0]
    assert metric in results["run"]["metrics"]
    assert [row["scores"][metric] for row in rows] == [pytest.approx(score) for score in twin.scores]
    for key, value in twin.values.items():
        assert results["results"][twin.task][key] == pytest.approx(value), key
