"""Tasks outside the paper's suite: of lmms-eval, of a YAML file, of a folder and of a group, scored by hand."""

import json
import re
from dataclasses import asdict, replace

import datasets
import pytest

from llava.engine.engine import Engine
from llava.errors import LlavaError
from llava.eval import main as eval_main
from llava.eval.benchmarks import BENCHMARKS
from llava.eval.catalogue import choose_tasks
from llava.eval.harness import run
from llava.eval.headline import task_headline
from llava.eval.job import Job
from llava.eval.report.comparison import build_report
from llava.eval.report.picture import draw
from llava.eval.report.tables import render_csv, render_json, render_text
from llava.eval.suites import PAPER_BENCHMARKS, SUITES
from tests.eval.report.run_folders import save_all_benchmarks

BASE = """\
dataset_path: parquet
dataset_kwargs:
  data_files:
    test: rows.parquet
test_split: test
doc_to_visual: !function helpers.images
doc_to_text: !function helpers.text
doc_to_target: answer
process_docs: !function helpers.without_last
process_results: !function helpers.scores
generation_kwargs:
  max_new_tokens: 4
"""
HELPERS = """\
def images(doc):
    return [doc["image"].convert("RGB")]


def text(doc):
    return doc["question"]


def without_last(documents):
    return documents.select(range(len(documents) - 1))


def scores(doc, results):
    right = float(results[0] == doc["answer"])
    return {
        "exact": right,
        "distance": abs(len(results[0]) - len(doc["answer"])),
        "percent": {"score": right},
        "best": {"answer": results[0], "target": doc["answer"]},
    }


def percent(rows):
    return 100 * sum(row["score"] for row in rows) / len(rows)


def best(rows):
    return max(float(row["answer"] == row["target"]) for row in rows) / 2
"""
METRICS = {
    "exact": "{metric: exact, aggregation: mean, higher_is_better: true}",
    "distance": "{metric: distance, aggregation: mean, higher_is_better: false}",
    "percent": "{metric: percent, aggregation: !function helpers.percent, higher_is_better: true}",
    "best": "{metric: best, aggregation: !function helpers.best, higher_is_better: true}",
}


@pytest.fixture
def tasks(tmp_path, make_image):
    """A folder with tasks of four documents, of which the task's own function leaves out the last."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    rows = [
        {"image": make_image(40, 50, number), "question": f"Say {word}.", "answer": word}
        for number, word in enumerate(["a", "bb", "ccc", "a"])
    ]
    features = datasets.Features(
        {"image": datasets.Image(), "question": datasets.Value("string"), "answer": datasets.Value("string")}
    )
    datasets.Dataset.from_list(rows, features=features).to_parquet(folder / "rows.parquet")
    (folder / "base_yaml").write_text(BASE)
    (folder / "helpers.py").write_text(HELPERS)
    for first in METRICS:
        others = [text for name, text in METRICS.items() if name != first]
        entries = "".join(f"  - {entry}\n" for entry in [METRICS[first], *others])
        (folder / f"{first}.yaml").write_text(f"include: base_yaml\ntask: my_{first}\nmetric_list:\n{entries}")
    return folder


@pytest.fixture
def evaluate(tiny_model_dir, tmp_path, monkeypatch):
    """A function: the words of --tasks and a model's answer to a question, to the folder of a whole run."""

    def evaluate(words, answer, name="run", **changes):
        monkeypatch.setattr(
            Engine, "generate", lambda engine, dialogues, **_: [answer(turns[-1].text) for turns, *_ in dialogues]
        )
        out = tmp_path / name
        arguments = ["--model", tiny_model_dir, "--tasks", words, "--out", out, "--device", "cpu"]
        for job in jobs_of(*map(str, arguments)):
            run(replace(job, **changes))
        return out

    return evaluate


def jobs_of(*arguments: str) -> list[Job]:
    args = eval_main._parse(list(arguments))
    return eval_main._jobs(args, eval_main._plan(args), None)


def said(question):
    return re.search(r"Say (\w+)", question)[1]


def test_suites_are_lists_of_tasks():
    assert len(SUITES["paper"]) == len(PAPER_BENCHMARKS) == 20
    assert [row.task for row in PAPER_BENCHMARKS] == list(SUITES["paper"])
    parts = ("general", "text_rich", "knowledge", "real_world")
    assert [task for part in parts for task in SUITES[part]] == list(SUITES["paper"])
    assert sorted([*SUITES["judged"], *SUITES["unjudged"]]) == sorted(SUITES["paper"])
    for name, tasks in SUITES.items():
        assert [choice.name for choice in choose_tasks(tasks)] == list(tasks), name


def test_the_default_is_the_paper_and_a_suite_excludes_tasks(tiny_model_dir, tmp_path):
    arguments = ["--model", str(tiny_model_dir), "--out", str(tmp_path / "run")]

    def asked(*more):
        return [job.task for job in jobs_of(*arguments, *more)]

    assert asked("--predict_only") == list(SUITES["paper"])
    assert asked("--suite", "text_rich") == ["textvqa_val", "chartqa", "docvqa_val", "infovqa_val", "ocrbench"]
    with pytest.raises(LlavaError, match="--suite names tasks, and so does --tasks"):
        asked("--suite", "paper", "--tasks", "gqa")


def test_what_lmms_eval_has_is_found_by_task_group_and_tag(capsys):
    (pope,) = choose_tasks(["pope"])
    assert pope.file.parts[-3:] == ("tasks", "pope", "pope.yaml")
    (ok_vqa,) = choose_tasks(["ok_vqa", "ok_vqa_val2014"])  # the group of one benchmark, which stays our own
    assert (ok_vqa.name, ok_vqa.file, ok_vqa.groups[0].tasks) == ("ok_vqa_val2014", None, ("ok_vqa_val2014",))
    jmmmu = choose_tasks(["jmmmu"])  # groups written out within a group
    assert len(jmmmu) == 28
    assert [group.name for group in jmmmu[0].groups] == ["culture_agnostic", "jmmmu"]
    assert (jmmmu[0].groups[1].metric, jmmmu[0].groups[1].by_size) == ("jmmmu_acc", True)
    assert [choice.name for choice in choose_tasks(["docvqa"])] == ["docvqa_val"]
    assert "note: group docvqa: left out, as they have no score: docvqa_test" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("popee", "unknown task 'popee'; did you mean pope?"),
        (
            "zzzzqqqq",
            "unknown task 'zzzzqqqq'; choose of vqav2_val, .*text_pages, or of lmms-eval's, which",
        ),
        ("docvqa_test", "docvqa_test: without a score: a file for the server of a challenge"),
        ("mmlu", "mmlu_abstract_algebra, .* and 52 more: of output type multiple_choice, but this model"),
        ("physical_conflict", "physical_conflict: a task that is written as a class"),
        ("./nowhere.yaml", "nowhere.yaml: no such task file or folder"),
    ],
)
def test_what_cannot_be_asked_is_named(word, reason):
    with pytest.raises(LlavaError, match=reason) as caught:
        choose_tasks([word])
    assert "\n" not in str(caught.value)


def test_files_that_are_no_tasks_or_take_a_name_are_named(tmp_path, tasks):
    def refused(reason, text, *more):
        (tmp_path / "one.yaml").write_text(text)
        with pytest.raises(LlavaError, match=reason):
            choose_tasks([str(tmp_path / "one.yaml"), *more])

    refused("one.yaml: not a task's YAML file", "task: [")
    refused("one.yaml: not a task's YAML file, which has keys and values", "- a")
    refused("it names no task", "dataset_path: x")
    refused("the name 'gqa' is taken by a task of this package", "task: gqa")
    refused("my_exact: stands in .*one.yaml and in .*exact.yaml", "task: my_exact", str(tasks / "exact.yaml"))
    refused("two: of output type generate_until_multi_round", "task: two\noutput_type: generate_until_multi_round")
    refused("group g: unknown task 'popee'; did you mean pope", "group: g\ntask: [popee]")
    refused("group g: is a part of itself", "group: g\ntask: [g]")
    (tmp_path / "empty").mkdir()
    with pytest.raises(LlavaError, match="has no YAML file of a task"):
        choose_tasks([f"{tmp_path}/empty"])


def test_a_task_of_lmms_eval_by_its_own_code(evaluate, tmp_path, make_image):
    """POPE: its first metric is the accuracy, which is the mean of the entries `score`."""
    folder = tmp_path / "data"
    folder.mkdir()
    answers = ["yes", "no", "yes", "no", "yes"]
    rows = [
        {"question_id": str(number), "question": f"Say {word}?", "answer": word, "image": make_image(40, 40, number)}
        for number, word in enumerate(answers)
    ]
    features = datasets.Features(dict.fromkeys(rows[0], datasets.Value("string")) | {"image": datasets.Image()})
    datasets.Dataset.from_list(rows, features=features).to_parquet(folder / "test-0.parquet")
    run_folder = evaluate("pope", lambda question: "Yes", data=str(folder))
    report = build_report([run_folder])
    score = report.rows["pope", "pope_accuracy"]["run"]
    assert (list(report.rows), report.title) == ([("pope", "pope_accuracy")], None)
    assert (score.value, score.documents, score.interval) == (pytest.approx(60), 5, "wilson")
    assert (score.low, score.high) == (pytest.approx(23.07, abs=0.01), pytest.approx(88.24, abs=0.01))  # of 3 in 5
    results = json.loads((run_folder / "pope" / "results.json").read_text())
    assert results["results"]["pope"]["pope_recall,none"] == 1  # the other metrics are kept

    def generate_nothing(*_, **__):
        raise AssertionError("an answer that is stored was asked for")

    again = evaluate("pope", generate_nothing, data=str(folder))
    assert build_report([again]).rows == report.rows


def test_a_file_whose_metric_is_lower_the_better(evaluate, tasks):
    one = evaluate(tasks / "distance.yaml", lambda question: "a", "one")
    two = evaluate(tasks / "distance.yaml", said, "two")
    report = build_report([one, two])
    score = report.rows["my_distance", "distance"]["one"]
    assert (score.value, score.documents, score.percent) == (1.0, 3, False)  # (0 + 1 + 2) / 3, of lengths
    assert report.rows["my_distance", "distance"]["two"].value == 0
    difference = report.row_differences["my_distance", "distance"]["two"]
    assert (difference.value, difference.low, difference.high) == (-1, -2, 0)
    assert report.lower_is_better == [("my_distance", "distance")]
    text = render_text(report)
    assert all(words in text for words in ("distance (lower is better)", "1 [0, 2] n=3", "-1 [-2, +0]"))
    assert "In lmms-eval's own unit, not on [0, 100]: my_distance distance." in text
    assert [row["higher_is_better"] for row in json.loads(render_json(report))["rows"]] == [False]
    assert "task,my_distance,,distance,one,1.0,0.0,2.0,3,bootstrap" in render_csv(report)
    (axes,) = draw(report, "bar").axes
    assert [bar.get_height() for bars in axes.containers[1::2] for bar in bars] == [1, 0]
    assert axes.get_ylim()[1] < 10


def test_a_folder_of_tasks(evaluate, tasks):
    """Percents are shown on [0, 100]; a value that is no mean of the documents' scores stands alone."""
    report = build_report([evaluate(f"{tasks}/", lambda question: "bb")])
    values = {key: (cells["run"].value, cells["run"].interval) for key, cells in report.rows.items()}
    assert values == {
        ("my_best", "best"): (0.5, "none"),
        ("my_distance", "distance"): (pytest.approx(200 / 3), "wilson"),  # none is off by more than one letter
        ("my_exact", "exact"): (pytest.approx(100 / 3), "wilson"),
        ("my_percent", "percent"): (pytest.approx(100 / 3), "wilson"),
    }
    text = render_text(report)
    assert "my_best best 0.5 n=3" in " ".join(text.split())
    assert "best is lmms-eval's own value, no mean of what documents scored" in " ".join(text.split())
    assert len(draw(report, "bar").axes) == 2  # in percent, and the one that is not


@pytest.mark.parametrize(("by_size", "mean"), [("false", (100 / 3 + 100) / 2), ("true", (3 * 100 / 3 + 2 * 100) / 5)])
def test_a_group_of_two_tasks(evaluate, tasks, by_size, mean):
    """The first scores 1 of 3, the second, which has a document less, 2 of 2, by the metric that the group names."""
    (tasks / "helpers.py").write_text(HELPERS + "\n\ndef longer(documents):\n    return documents.select([1, 1])\n")
    (tasks / "second.yaml").write_text(
        "include: exact.yaml\ntask: my_second\nprocess_docs: !function helpers.longer\nmetric_list:\n"
        f"  - {METRICS['distance']}\n  - {METRICS['exact']}\n"
    )
    aggregate = f"  - {{metric: exact, aggregation: mean, weight_by_size: {by_size}}}"
    (tasks / "group.yaml").write_text(
        f"group: my_group\ntask: [my_exact, my_second]\naggregate_metric_list:\n{aggregate}\n"
    )
    one = evaluate(tasks / "group.yaml", lambda question: "bb", "one")
    two = evaluate(tasks / "group.yaml", lambda question: "a", "two")
    report = build_report([one, two])
    label = "mean of 2 tasks" + (", weighted by documents" if by_size == "true" else "")
    assert list(report.rows) == [("my_exact", "exact"), ("my_second", "exact"), ("my_group", label)]
    cells = report.rows["my_group", label]
    assert (cells["one"].value, cells["one"].documents) == (pytest.approx(mean), 5)
    base = 20 if by_size == "true" else 100 / 6  # "a" is right once in three and never in two
    assert cells["two"].value == pytest.approx(base)
    assert report.row_differences["my_group", label]["two"].value == pytest.approx(base - mean)


def test_other_tasks_never_change_the_papers_mean(evaluate, tasks, tmp_path):
    """The twenty benchmarks alone, and beside a task whose score would move any mean."""
    alone = build_report([save_all_benchmarks(tmp_path / "run")])
    report = build_report([evaluate(tasks / "exact.yaml", lambda question: "none")])
    assert report.rows["my_exact", "exact"]["run"].value == 0
    assert [asdict(row) for row in report.averages] == [asdict(row) for row in alone.averages]
    assert report.title == alone.title == "All 20 benchmarks"
    (overall,) = [row for row in report.averages if row.name == "Overall"]
    assert (overall.label, overall.scores["run"].value) == ("Overall (20)", pytest.approx((790 + 88 + 120) / 20))
    assert len(report.benchmarks) == len(BENCHMARKS)
    assert "unweighted means over the suite `paper` (20 benchmarks)" in " ".join(render_text(report).split())


def test_the_headline_is_the_first_number_unless_a_group_names_another():
    rows = [{"scores": {"b": 0.0, "c": 3.0}}, {"scores": {"b": 1.0, "c": 4.0}}]
    values = {"a,none": None, "b,none": 0.5, "c,none": 3.5, "c,other": 9.0}
    metrics = {"a": True, "b": True, "c": False}
    first = task_headline("t", metrics, values, "none", rows)
    assert (first.metric, first.value, first.factor, first.bounded, first.higher_is_better) == ("b", 0.5, 1, True, True)
    named = task_headline("t", metrics, values, "none", rows, ["other", "c"])
    assert (named.metric, named.factor, named.bounded, named.higher_is_better) == ("c", 1, False, False)
    assert task_headline("t", metrics, values | {"b,none": 0.4}, "none", rows).factor is None
    assert task_headline("t", metrics, values | {"b,none": 50}, "none", rows).factor == 100
    with pytest.raises(LlavaError, match="task t: lmms-eval gives no score"):
        task_headline("t", {"a": True}, values, "none", rows)


def test_documents_that_are_heard_are_refused(evaluate, tasks):
    rows = datasets.Dataset.from_dict({"audio": [{"bytes": b"", "path": None}] * 2, "question": ["a", "b"]})
    rows.cast_column("audio", datasets.Audio()).to_parquet(tasks / "rows.parquet")
    with pytest.raises(LlavaError, match="task my_exact: its documents are audio"):
        evaluate(tasks / "exact.yaml", lambda question: "a")


def test_the_help_is_short():
    assert len(eval_main._parser().epilog.splitlines()) <= 6
