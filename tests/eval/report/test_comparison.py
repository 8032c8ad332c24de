"""Averages, differences and refusals of a report, against values by hand."""

import pytest

from llava.errors import LlavaError
from llava.eval.benchmarks import BENCHMARKS
from llava.eval.report.comparison import build_report
from tests.eval.report.run_folders import (
    JUDGE,
    POINTS,
    RIGHT,
    save_all_benchmarks,
    save_benchmark,
    save_digit_pages,
    scores_of,
)

# Means of 10, 20, 30, 40, 50, 60; of 50, 50, 80, 50, 100; of 10, 20, 30, 40; of 0, 100, 50, 88, 120.
AVERAGES = {
    "General": 35.0,
    "Text-rich": 66.0,
    "Knowledge": 25.0,
    "Real-world": 71.6,
    "Overall": 49.9,  # (210 + 330 + 100 + 358) / 20
    "Natural images": 50.0,
    "Abstract images": 80.0,
    "Hybrid images": 100.0,
    "Low resolution": 100.0,
    "High resolution": 65.0,
}


def values(rows, run):
    return {row.name: row.scores[run].value for row in rows if run in row.scores}


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    return save_all_benchmarks(tmp_path_factory.mktemp("runs") / "full")


def test_the_made_up_scores_cover_the_benchmarks():
    assert {known.task for known in BENCHMARKS} == {*RIGHT, *POINTS}


def test_all_benchmarks_and_averages(full):
    report = build_report([full])
    assert [row.name for row in report.benchmarks] == [known.name for known in BENCHMARKS]
    assert len(report.benchmarks) == 20
    found = values(report.benchmarks, "full")
    assert (found["VQAv2"], found["OCRBench"], found["AI2D"], found["LLaVA-Wild"], found["LLaVA-Wilder"]) == (
        pytest.approx((10, 100, 10, 88, 120))
    )
    assert values(report.averages, "full") == pytest.approx(AVERAGES)
    assert [row.label for row in report.averages] == [
        "General (6)", "Text-rich (5)", "Knowledge (4)", "Real-world (5)", "Overall (20)", "Natural images (1)",
        "Abstract images (1)", "Hybrid images (1)", "Low resolution (1)", "High resolution (2)",
    ]  # fmt: skip
    assert (report.title, report.warnings, report.arms) == ("All 20 benchmarks", [], [])
    (overall,) = [row for row in report.averages if row.name == "Overall"]
    assert overall.scores["full"].documents == 200


def test_differences_are_to_the_first_or_the_named_run(full, tmp_path):
    other = save_all_benchmarks(tmp_path / "other", but=("gqa", "llava_in_the_wild"))
    save_benchmark(other, "gqa", [1.0] * 5 + [0.0] * 5)  # 50 instead of 30
    save_benchmark(other, "llava_in_the_wild", [[1, 5]] * 5 + [[9, 7.5]] * 5)  # 80 instead of 88
    report = build_report([full, other])
    found = {row.name: row.differences["other"] for row in (*report.benchmarks, *report.averages)}
    assert len(found) == 30
    changed = {name: difference.value for name, difference in found.items() if difference.value}
    assert changed == pytest.approx(
        {"GQA": 20, "LLaVA-Wild": -8, "General": 20 / 6, "Real-world": -8 / 5, "Overall": 12 / 20}
    )
    # 2 of 10 documents differ: a binomial draw of 10 with 2/10 has the 2.5% and 97.5% points 0 and 5.
    assert (found["GQA"].low, found["GQA"].high) == (0, 50)
    # The draws of both runs took the same documents: where nothing differs nothing varies.
    assert (found["VQAv2"].low, found["VQAv2"].high, found["Knowledge"].low, found["Knowledge"].high) == (0, 0, 0, 0)
    assert 0 <= found["General"].low < 20 / 6 < found["General"].high <= 50 / 6
    turned = build_report([full, other], reference="other")
    (gqa,) = [row for row in turned.benchmarks if row.name == "GQA"]
    assert (list(gqa.differences), gqa.differences["full"].value) == (["full"], pytest.approx(-20))
    with pytest.raises(LlavaError, match="no run is called 'third', the runs are full, other"):
        build_report([full, other], reference="third")


@pytest.mark.parametrize(
    ("task", "changes", "remark"),
    [
        ("gqa", None, "missing"),
        ("ocrbench", {"limit": 10}, "first 10 documents only"),
        ("mmvet", {"score": None, "judge": {**JUDGE, "failed_reviews": 1}}, "1 failed review"),
        ("mmvet", {"judge": {**JUDGE, "failed_reviews": 2}}, "2 failed reviews"),
        ("chartqa", {"score": None}, "no score"),
    ],
)
def test_what_is_incomplete_is_not_averaged_unless_told(tmp_path, task, changes, remark):
    run = save_all_benchmarks(tmp_path / "run", but=(task,))
    if changes is not None:
        save_benchmark(run, task, scores_of(task), **changes)
    (known,) = [known for known in BENCHMARKS if known.task == task]
    touched = {known.category, "Overall", f"{known.image_kind} images", f"{known.resolution} resolution"}
    refused = build_report([run])
    assert values(refused.averages, "run") == pytest.approx(
        {name: value for name, value in AVERAGES.items() if name not in touched}
    )
    remarks = {row.name: row.remarks for row in refused.averages if row.remarks}
    assert remarks == {name: {"run": "not averaged"} for name in touched & {known.category, "Overall"}} | {
        name: {"run": "not averaged"} for name in touched & set(AVERAGES) if changes and "limit" in changes
    }
    assert f"no averages over what is incomplete in run ({remark}: {task})" in refused.warnings[0]
    scored = 20 if changes and "limit" in changes else 19
    assert refused.title == f"{scored} of 20 benchmarks; incomplete groups are not averaged"

    told = build_report([run], allow_missing=True)
    assert told.title == f"PARTIAL AVERAGES, overall of {scored} of 20 benchmarks: run ({remark}: {task})"
    assert told.warnings == []
    own = 10 * RIGHT[task]
    assert values(told.averages, "run")["Overall"] == pytest.approx(49.9 if scored == 20 else (998 - own) / 19)
    labels = [row.label for row in told.averages if row.name == "Overall"]
    assert labels == (["Overall (20)"] if scored == 20 else ["Overall (19 of 20)"])


def test_documents_without_a_score_leave_a_benchmark_incomplete(tmp_path):
    run = save_all_benchmarks(tmp_path / "run", but=("live_bench_2407",))
    save_benchmark(run, "live_bench_2407", [1.0, None, None, 0.5])
    report = build_report([run])
    assert values(report.benchmarks, "run")["MM-LiveBench-07"] == pytest.approx(75)
    assert not {"Real-world", "Overall"} & set(values(report.averages, "run"))
    assert "run (2 of 4 documents without a score: live_bench_2407)" in report.warnings[0]


def test_a_limit_above_the_number_of_documents_cuts_nothing(tmp_path):
    run = save_all_benchmarks(tmp_path / "run", limit=11)
    assert build_report([run]).title == "All 20 benchmarks"


def test_partial_averages_are_over_what_every_run_has(full, tmp_path):
    run = save_all_benchmarks(tmp_path / "part", but=("gqa", "mmvet", "chartqa"))
    (run / "chartqa.answers").mkdir()
    report = build_report([full, run], allow_missing=True)
    for name in ("full", "part"):
        found = values(report.averages, name)
        assert found["General"] == pytest.approx((10 + 20 + 50 + 60) / 4)
        assert found["Overall"] == pytest.approx((998 - 30 - 40 - 50) / 17)
    (overall,) = [row for row in report.averages if row.name == "Overall"]
    assert (overall.label, overall.differences["part"].value) == ("Overall (17 of 20)", 0)
    assert "17 of 20 benchmarks: part (missing: gqa, mmvet; answers not scored: chartqa)" in report.title
    (chartqa,) = [row for row in report.benchmarks if row.name == "ChartQA"]
    assert (list(chartqa.scores), chartqa.remarks) == (["full"], {"part": "answers not scored"})
    refused = build_report([full, run])
    assert values(refused.averages, "full") == pytest.approx(AVERAGES)
    assert "General" not in values(refused.averages, "part")
    assert values(refused.averages, "part")["Knowledge"] == pytest.approx(25)


def test_other_documents_have_no_difference(full, tmp_path):
    run = save_all_benchmarks(tmp_path / "other", but=("gqa", "ai2d"))
    save_benchmark(run, "gqa", scores_of("gqa"), questions=[f"another {index}" for index in range(10)])
    save_benchmark(run, "ai2d", [1.0, 0.0])
    report = build_report([full, run])
    without = [row.name for row in (*report.benchmarks, *report.averages) if "other" not in row.differences]
    assert without == ["GQA", "AI2D", "General", "Knowledge", "Overall"]
    assert report.warnings == ["other and full have other documents in gqa, ai2d: no difference is given"]


def test_the_papers_figures(full, tmp_path):
    grid = save_all_benchmarks(tmp_path / "grid", arm="grid")
    blind = save_all_benchmarks(tmp_path / "blind", arm="baseline", image_noise=True)
    report = build_report([full, grid, blind])
    assert report.arms == ["grid"]  # a blind model is not what the paper measured
    given = {row.name: row.paper for row in (*report.benchmarks, *report.averages) if row.paper}
    assert given == {"Overall": {"baseline": 50.61, "manager": 51.67, "grid": 53.87, "grid_manager": 55.21}}
    assert build_report([full], arms=["manager"]).arms == ["manager"]
    save_benchmark(tmp_path / "some", "gqa", [1.0, 0.0], arm="grid")
    some = build_report([tmp_path / "some"])  # has no overall score, of which alone the paper gives figures
    assert (some.arms, [line for line in some.notes if "paper's figures" in line]) == ([], [])
    assert build_report([tmp_path / "some"], arms=["grid"]).arms == ["grid"]
    assert build_report([grid], arms=[]).arms == []
    with pytest.raises(LlavaError, match="the paper has no arm 'grids', it has baseline, manager, grid, grid_manager"):
        build_report([full], arms=["grids"])


@pytest.mark.parametrize(
    ("task", "changes", "warning"),
    [
        ("gqa", {"protocol": "harness"}, "different protocol: paper (full; other: ai2d), harness (other: gqa)"),
        ("gqa", {"versions": {"lmms-eval": "0.8"}}, "different lmms-eval: 0.7.3 (full; other: ai2d), 0.8 (other: gqa)"),
        ("gqa", {"task_version": 2.0}, "different version of task gqa: 1.0 (full), 2.0 (other)"),
        ("mmvet", {"judge": {**JUDGE, "name": "b"}}, "different judge: judge-1 (full), b (other)"),
        (
            "mmvet",
            {"judge": {**JUDGE, "prompts": "c"}},
            "different prompts of the judge of mmvet: a1b2 (full), c (other)",
        ),
        ("gqa", {"weights": "f"}, "different weights within other: 0123456789ab (other: ai2d), f (other: gqa)"),
        ("gqa", {"dtype": "bf16"}, "different precision within other: float32 (other: ai2d), bf16 (other: gqa)"),
        (
            "gqa",
            {"image_noise": True},
            "different noise for images within other: False (other: ai2d), True (other: gqa)",
        ),
    ],
)
def test_what_differs_between_runs_is_a_warning(full, tmp_path, task, changes, warning):
    save_benchmark(tmp_path / "other", "ai2d", scores_of("ai2d"))
    save_benchmark(tmp_path / "other", task, scores_of(task), **changes)
    warnings = build_report([full, tmp_path / "other"]).warnings
    assert warnings[1:] == [warning]


def test_other_tasks_keep_their_rows(full, tmp_path):
    save_digit_pages(tmp_path / "digits", 1.0, 1.0, 1.0, 0.0, anls=(1.0, 1.0, 1.0, 0.5))
    report = build_report([tmp_path / "digits"])
    assert (report.title, report.benchmarks, report.averages, report.warnings) == (None, [], [], [])
    found = {metric: scores["digits"].value for (_, metric), scores in report.rows.items()}
    assert found == {"anls": pytest.approx(87.5), "exact_match": pytest.approx(75)}
    both = build_report([full, tmp_path / "digits"])
    assert list(both.rows) == [("digit_pages", "anls"), ("digit_pages", "exact_match")]
    assert (both.title, both.warnings) == ("All 20 benchmarks", [])
    assert all(row.remarks == {} for row in both.benchmarks)
    assert values(both.averages, "full") == pytest.approx(AVERAGES)


def test_two_runs_of_one_name_are_refused(tmp_path):
    for folder in ("a", "b"):
        save_digit_pages(tmp_path / folder / "run", 1.0)
    with pytest.raises(LlavaError, match="another run is already called 'run'"):
        build_report([tmp_path / "a" / "run", tmp_path / "b" / "run"])


def test_other_tasks_are_compared_on_the_same_documents(tmp_path):
    save_digit_pages(tmp_path / "one", 1.0, 0.0, 0.0, 0.0)
    save_digit_pages(tmp_path / "two", 1.0, 1.0, 1.0, 0.0)
    save_digit_pages(tmp_path / "three", 1.0, 1.0)
    report = build_report([tmp_path / name for name in ("one", "two", "three")])
    found = report.row_differences["digit_pages", "exact_match"]
    assert set(found) == {"two"}
    assert found["two"].value == pytest.approx(50)
    assert found["two"].low < 50 < found["two"].high
    assert report.warnings == ["three and one have other documents in digit_pages: no difference is given"]
