"""Runs read back from disk, and what is wrong with those that cannot be."""

import json

import pytest
from PIL import Image

from llava.errors import LlavaError
from llava.eval.store import discard_task_run, load_run, save_task_run, unscored_tasks
from tests.eval.report.run_folders import JUDGE, RUN, save_benchmark, save_digit_pages


def change_rows(folder, change):
    file = folder / "samples.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps(row) + "\n" for row in change(rows)))


def change_run(folder, change):
    file = folder / "results.json"
    results = json.loads(file.read_text())
    change(results["run"])
    file.write_text(json.dumps(results))


def test_scores_are_floats_or_points_in_the_order_of_the_documents(tmp_path):
    save_benchmark(tmp_path, "ai2d", [0.0, 1.0, 0.0], doc_ids=(2, 0, 1))  # its metric has a filter in the harness
    save_benchmark(tmp_path, "llava_in_the_wild", [[4, 8], [9, 6.5]])
    save_digit_pages(tmp_path, 1.0, 0.0, anls=(1.0, 0.5))
    ai2d, digits, wild = load_run(tmp_path)
    assert ai2d.scores == {"exact_match": [1.0, 0.0, 0.0]}
    assert wild.scores == {"gpt_eval_llava_all": [(4.0, 8.0), (9.0, 6.5)]}
    assert digits.scores == {"anls": [1.0, 0.5], "exact_match": [1.0, 0.0]}


def test_documents_are_the_same_or_not(tmp_path):
    for name, changes in {
        "a": {},
        "same": {},
        "numbers": {"doc_ids": (0, 2)},
        "questions": {"questions": ["gqa 0", "another"]},
    }.items():
        save_benchmark(tmp_path / name, "gqa", [0.0, 1.0], **changes)
    found = {name: load_run(tmp_path / name)[0].documents for name in ("a", "same", "numbers", "questions")}
    assert found["a"] == found["same"]
    assert len({documents["exact_match"] for documents in found.values()}) == 3


def test_images_in_documents_are_the_same_in_every_run(tmp_path):
    block = {**RUN, "documents": 1, "metrics": ["anls"]}
    for name, width in (("a", 40), ("b", 40), ("wider", 50)):
        row = {"doc_id": 0, "doc": {"images": [Image.new("RGB", (width, 30))]}, "target": "", "scores": {"anls": 1.0}}
        save_task_run(tmp_path / name, "pages", {"run": block, "results": {"pages": {"anls,none": 1.0}}}, [row])
    a, b, wider = (load_run(tmp_path / name)[0].documents for name in ("a", "b", "wider"))
    assert a == b != wider
    assert '"images": ["RGB image, 40x30"]' in (tmp_path / "a" / "pages" / "samples.jsonl").read_text()


@pytest.mark.parametrize(("claimed", "agrees"), [(50.009, True), (50.011, False), (0.1, False), (float("nan"), False)])
def test_headline_is_that_of_the_documents(tmp_path, claimed, agrees):
    save_benchmark(tmp_path, "ocrbench", [[1.0, 1], [0.0, 1]], score=claimed)
    if agrees:
        assert load_run(tmp_path)[0].scores == {"ocrbench_accuracy": [(1.0, 1.0), (0.0, 1.0)]}
    else:
        with pytest.raises(LlavaError, match=r"ocrbench: ocrbench_accuracy is 0.5 over samples.jsonl but"):
            load_run(tmp_path)


def test_failed_reviews_leave_no_scores(tmp_path):
    judge = {**JUDGE, "failed_reviews": 3}
    save_benchmark(tmp_path / "null", "mmvet", [0.5, 0.5], score=None, judge=judge)
    save_benchmark(tmp_path / "claimed", "mmvet", [0.5, 0.5], judge=judge)  # whatever the score claims
    for name in ("null", "claimed"):
        (run,) = load_run(tmp_path / name)
        assert (run.scores, run.failed_reviews) == ({}, 3)


def test_first_runs_are_read_without_what_they_did_not_record(tmp_path):
    folder = save_digit_pages(tmp_path, 1.0, 0.0)
    change_run(folder, lambda run: [run.pop(key) for key in ("protocol", "arm", "judge", "score", "notes")])
    (run,) = load_run(tmp_path)
    assert (run.run["protocol"], run.failed_reviews, run.scores["anls"]) == (None, 0, [1.0, 0.0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[:1], "1 rows in samples.jsonl but 2 documents in results.json"),
        (lambda rows: [rows[0], rows[0]], "2 rows in samples.jsonl but 1 different doc_id"),
        (lambda rows: [{"doc_id": 0}, rows[1]], r"damaged results \(KeyError: 'scores'\)"),
        (lambda rows: [rows[0] | {"scores": {"exact_match": 0.5}}, rows[1]], "exact_match is 0.75 over .* but 0.5 in"),
        (lambda rows: [rows[0] | {"scores": {"exact_match": 1.5}}, rows[1]], "doc_id 0 has exact_match 1.5; expected"),
        (lambda rows: [rows[0] | {"scores": {"exact_match": float("nan")}}, rows[1]], "doc_id 0 has exact_match nan"),
        (lambda rows: [rows[0] | {"scores": {"exact_match": [1]}}, rows[1]], r"doc_id 0 has exact_match \[1\]"),
        (lambda rows: [rows[0] | {"scores": {"exact_match": [-1, 1]}}, rows[1]], r"has exact_match \[-1, 1\]"),
        (lambda rows: [rows[0] | {"scores": {"exact_match": [0, 1]}}, rows[1]], r"\[points, of\] in 1 of 2 rows"),
        (lambda rows: [row | {"scores": {"exact_match": [0, 0]}} for row in rows], "out of 0 points in every row"),
        (lambda rows: [row | {"scores": {}} for row in rows], "has the score 50.0, 0 rows of samples.jsonl have exact"),
    ],
)
def test_damaged_rows_are_named(tmp_path, change, message):
    change_rows(save_benchmark(tmp_path, "gqa", [0.0, 1.0]), change)
    with pytest.raises(LlavaError, match=f"gqa: .*{message}"):
        load_run(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda run: run.pop("weights"), "damaged results .*run: weights"),
        (lambda run: run.update(judge={"name": "a"}), "damaged results .*judge: prompts, failed_reviews"),
        (lambda run: run.pop("score"), "written by an older version, results.json has no score; evaluate gqa again"),
        (lambda run: run.update(score="50"), "has the score '50'"),
    ],
)
def test_damaged_run_blocks_are_named(tmp_path, change, message):
    change_run(save_benchmark(tmp_path, "gqa", [0.0, 1.0]), change)
    with pytest.raises(LlavaError, match=message):
        load_run(tmp_path)


def test_other_tasks_must_agree_with_the_harness_too(tmp_path):
    save_digit_pages(tmp_path, 1.0, 0.0, means={"anls,none": 0.5, "exact_match,none": 0.75})
    with pytest.raises(LlavaError, match=r"exact_match is 0.5 over samples.jsonl but 0.75 in results.json"):
        load_run(tmp_path)


def test_half_written_folders_are_named(tmp_path):
    folder = save_benchmark(tmp_path / "cut", "gqa", [0.0, 1.0])
    (folder / "results.json").write_text((folder / "results.json").read_text()[:-20])
    with pytest.raises(LlavaError, match=r"gqa: damaged results \(JSONDecodeError"):
        load_run(tmp_path / "cut")
    (folder / "results.json").unlink()
    with pytest.raises(LlavaError, match=r"gqa: damaged results \(FileNotFoundError"):
        load_run(tmp_path / "cut")
    save_benchmark(tmp_path / "killed", "ai2d", [1.0])
    (tmp_path / "killed" / ".gqa.unfinished").mkdir()
    with pytest.raises(LlavaError, match="results of gqa that were only half written; evaluate gqa again"):
        load_run(tmp_path / "killed")
    discard_task_run(tmp_path / "killed", "gqa")
    assert [run.task for run in load_run(tmp_path / "killed")] == ["ai2d"]


def test_folders_without_results_are_named(tmp_path):
    with pytest.raises(LlavaError, match="nowhere: no such run folder"):
        load_run(tmp_path / "nowhere")
    (tmp_path / "run" / "gqa.answers").mkdir(parents=True)
    with pytest.raises(LlavaError, match=r"holds no evaluation results .*; stored answers of gqa wait to be scored"):
        load_run(tmp_path / "run")
    folder = save_benchmark(tmp_path / "run", "ai2d", [1.0])
    assert unscored_tasks(tmp_path / "run") == {"gqa"}
    with pytest.raises(LlavaError, match=f"ai2d: the results of one task; give the run's folder, {tmp_path}/run"):
        load_run(folder)


def test_saving_replaces_and_discarding_removes(tmp_path):
    save_digit_pages(tmp_path, 1.0, 0.0)
    save_digit_pages(tmp_path, 1.0)
    assert [run.scores["exact_match"] for run in load_run(tmp_path)] == [[1.0]]
    assert [path.name for path in tmp_path.iterdir()] == ["digit_pages"]
    discard_task_run(tmp_path, "digit_pages")
    assert list(tmp_path.iterdir()) == []


def test_rows_keep_any_text(tmp_path):
    rows = [{"doc_id": 0, "doc": {"q": "é 一\u2028\U0001f600"}, "target": None, "answer": "", "scores": {"anls": 1}}]
    block = {**RUN, "documents": 1, "metrics": ["anls"]}
    save_task_run(tmp_path, "pages", {"run": block, "results": {"pages": {"anls,none": 1.0}}}, rows)
    assert load_run(tmp_path)[0].scores == {"anls": [1.0]}
