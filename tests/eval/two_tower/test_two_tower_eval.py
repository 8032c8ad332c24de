"""`llava eval` of tiny two-tower models, from the command line to the report."""

import json
import subprocess
from dataclasses import replace
from datetime import UTC, datetime
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from llava.data.pairs.dataset import PairDataset
from llava.errors import LlavaError
from llava.eval import main as command
from llava.eval.job import Job
from llava.eval.report.comparison import build_report
from llava.eval.store import load_run, read_rows
from llava.eval.two_tower import work
from llava.eval.two_tower.jobs import PROTOCOL
from tests.data.pairs.conftest import ENTAILMENT, QUESTIONS, captions, write_arrow
from tests.paths import ROOT
from tests.two_tower.tiny import tiny_model

ANSWERS = ("red", "green", "yes", "2")


@pytest.fixture
def save(tmp_path, processor):
    """Saves a tiny model of a task; gives its folder."""

    def of_task(task, seed=0, **options):
        folder = tmp_path / f"{task}-{seed}"
        model = tiny_model(task, seed, vocab_size=len(processor.tokenizer), **options)
        model.save_pretrained(folder)
        replace(processor, answers=ANSWERS if task == "vqav2" else None).save_pretrained(folder)
        return folder

    return of_task


@pytest.fixture
def evaluate(monkeypatch):
    """`llava eval`, its tasks in this process."""

    def in_process(job, processes, locks=()):
        try:
            work.run(job)
        except LlavaError as error:
            return str(error)

    monkeypatch.setattr(command, "_failure", in_process)
    return lambda *words: command.main([str(word) for word in words])


def data_of(tmp_path, kind, **splits):
    lines = [f"kind: {kind}", "splits:"]
    for split, rows in splits.items():
        write_arrow(tmp_path / f"{split}.arrow", rows)
        lines += [f"  {split}:", f"    - {{name: made_up, files: {split}.arrow}}"]
    file = tmp_path / "mixture.yaml"
    file.write_text("\n".join(lines))
    return file


def test_questions_are_scored_and_reported(tmp_path, save, evaluate, capsys):
    model, data, out = save("vqav2", num_answers=4), data_of(tmp_path, "questions", val=QUESTIONS * 4), tmp_path / "one"
    assert evaluate("--model", model, "--tasks", "vqav2", "--data", data, "--out", out, "--batch_size", 5) == 0
    rows = read_rows(out / "vqav2.val")
    assert len(rows) == 12
    for row in rows:
        assert row["answer"] in ANSWERS
        assert row["scores"] == {"vqa_score": row["target"].get(row["answer"], 0.0)}
    assert rows[0]["doc"] == {"file": "val.arrow", "row": 1, "text": "what color", "question_id": 70}
    score = build_report([out]).rows["vqav2.val", "vqa_score"]["one"]
    assert score.value == pytest.approx(100 * np.mean([row["scores"]["vqa_score"] for row in rows]))
    assert score.low is not None
    assert "vqav2.val" in capsys.readouterr().out


def test_stored_answers_are_not_asked_again(tmp_path, save, evaluate, monkeypatch):
    model, data = save("vqav2", num_answers=4), data_of(tmp_path, "questions", val=QUESTIONS)
    words = ("--model", model, "--tasks", "vqav2", "--data", data, "--out", tmp_path / "one")
    assert evaluate(*words, "--predict_only") == 0
    monkeypatch.setattr(work._Evaluation, "_batches", lambda self, places: pytest.fail("asked") if places else ())
    assert evaluate(*words) == 0
    assert load_run(tmp_path / "one")[0].run["documents"] == 3


def test_what_nobody_knows_is_handed_in(tmp_path, save, evaluate):
    unknown = [{key: value for key, value in row.items() if not key.startswith("answer")} for row in QUESTIONS]
    model, data, out = save("vqav2", num_answers=4), data_of(tmp_path, "questions", test=unknown), tmp_path / "one"
    assert evaluate("--model", model, "--tasks", "vqav2.test", "--data", data, "--out", out) == 0
    answers = json.loads((out / "vqav2.test.submission.json").read_text())
    assert [list(answer) for answer in answers] == [["question_id", "answer"]] * 3
    assert [answer["question_id"] for answer in answers] == [70, 71, 80]
    assert all(answer["answer"] in ANSWERS for answer in answers)
    with pytest.raises(LlavaError, match=r"answers of vqav2\.test wait to be scored"):
        load_run(out)


def test_sentences_are_scored_by_accuracy(tmp_path, save, evaluate):
    model, data, out = save("snli_ve"), data_of(tmp_path, "entailment", val=ENTAILMENT * 5), tmp_path / "one"
    assert evaluate("--model", model, "--data", data, "--out", out) == 0
    rows = read_rows(out / "snli_ve.val")
    assert [row["target"] for row in rows[:2]] == ["entailment", "contradiction"]
    assert all(row["scores"]["accuracy"] == (row["answer"] == row["target"]) for row in rows)
    assert build_report([out]).rows["snli_ve.val", "accuracy"]["one"].interval == "wilson"


def opened_images(monkeypatch) -> list[str]:
    """Where each image that is opened from now on comes from."""
    opened, own = [], PairDataset.open
    monkeypatch.setattr(
        PairDataset, "open", lambda self, image, origin: opened.append(origin) or own(self, image, origin)
    )
    return opened


def test_retrieval_is_scored_by_recalls(tmp_path, save, evaluate, monkeypatch):
    model, data, out = save("retrieval"), data_of(tmp_path, "captions", val=captions(15)), tmp_path / "one"
    words = ("--model", model, "--tasks", "retrieval", "--data", data, "--out", out, "--batch_size", 4, "--limit", 12)
    opened = opened_images(monkeypatch)
    assert evaluate(*words) == 0
    assert len(opened) == len(set(opened)) == 12
    rows = read_rows(out / "retrieval.val")
    texts, images = ([row for row in rows if row["doc"]["query"] == query] for query in ("text", "image"))
    assert (len(texts), len(images)) == (24, 12)
    recalls = {
        f"{name}_r{k}": np.mean([int(row["answer"]) <= k for row in of_name])
        for name, of_name in (("ir", texts), ("tr", images))
        for k in (1, 5, 10)
    }
    scores = {metric: cells["one"] for (_, metric), cells in build_report([out]).rows.items()}
    expected = {**recalls, "r_mean": np.mean(list(recalls.values()))}
    assert {metric: score.value / 100 for metric, score in scores.items()} == pytest.approx(expected)
    assert scores["r_mean"].low < scores["r_mean"].value < scores["r_mean"].high
    assert texts[3]["target"] == 2
    counts = []
    for number in (1, 0):
        again = tmp_path / f"rerank{number}"
        assert evaluate(*words, "--out", again, "--rerank", number) == 0
        answers = [row["answer"] for row in read_rows(again / "retrieval.val")]
        assert answers != [row["answer"] for row in rows]
        notes = (again / "retrieval.val" / "results.json").read_text()
        counts.append((notes.count("the nearest 1 by ITC anew"), notes.count("ranked by ITC alone")))
    assert counts == [(1, 0), (0, 1)]


def test_a_model_and_data_that_do_not_fit(tmp_path, save, evaluate, capsys):
    model = save("vqav2", num_answers=5)
    data = data_of(tmp_path, "questions", val=QUESTIONS)
    out = ("--out", tmp_path / "one")
    assert evaluate("--model", model, "--tasks", "vqav2", "--data", data, *out) == 1
    assert "answers.json has 4 answers, but the head of" in capsys.readouterr().err
    for words, message in (
        (("--tasks", "flickr30k"), r"flickr30k is of the task retrieval, but the model's is vqav2 \(its sets: vqav2\)"),
        (("--tasks", "vqa"), "unknown task 'vqa'"),
        (("--data", tmp_path), "a two-tower model's is a mixture of pairs or a data file"),
        (("--image_noise",), "--image_noise is for models that generate text"),
        (("--rerank", "4"), "--rerank is for retrieval, but vqav2 is of the task vqav2"),
        (("--rerank", "-1"), "--rerank must be at least 0, found -1"),
        (("--limit", "0"), "--limit must be at least 1, found 0"),
        (("--tasks", "vqav2.dev", "--data", data), "has no split 'dev'; it has val"),
        (("--tasks", "vqav2.test"), r"names .*vqav2_test\.arrow, which is not there; --data FILE"),
    ):
        with pytest.raises(LlavaError, match=message):
            evaluate("--model", model, *words, *out)


def test_two_processes_share_the_documents(tmp_path, save, evaluate, forked_python):
    model, data = save("retrieval"), data_of(tmp_path, "captions", val=captions(9))
    words = ["--model", model, "--tasks", "retrieval", "--data", data, "--batch_size", "4", "--device", "cpu"]
    assert evaluate(*words, "--out", tmp_path / "one") == 0
    command = [forked_python.command, "-m", "llava.cli", "eval", *words, "--out", tmp_path / "two", "--processes", "2"]
    done = subprocess.run([*map(str, command)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "retrieval.val" in done.stdout
    answers = tmp_path / "two/retrieval.val.answers"
    assert [len((answers / f"rank{rank}.jsonl").read_text().splitlines()) for rank in range(2)] == [5, 4]
    one, two = (read_rows(tmp_path / name / "retrieval.val") for name in ("one", "two"))
    assert one == two


@pytest.mark.parametrize(
    ("task", "kind", "rows"), [("vqav2", "questions", QUESTIONS * 3), ("retrieval", "captions", captions(9))]
)
def test_a_rank_that_begins_late_leaves_nothing_out(tmp_path, save, task, kind, rows):
    """It reads what the first rank has stored by then, and takes the share that it would have taken anyway."""
    model = save(task, **({"num_answers": 4} if task == "vqav2" else {}))
    data, out = data_of(tmp_path, kind, val=rows), tmp_path / "one"
    job = Job(
        str(model), f"{task}.val", str(data), str(out), batch_size=4, device="cpu", protocol=PROTOCOL, weights="w"
    )
    for rank in range(2):
        evaluation = work._Evaluation(job)
        evaluation.accelerator = SimpleNamespace(process_index=rank, num_processes=2, is_main_process=False)
        with torch.inference_mode():
            evaluation.answer()
    evaluation.save(datetime.now(UTC))
    assert len(read_rows(out / job.task)) == (9 if task == "vqav2" else 18 + 9)


def test_half_known_answers_are_a_fault(tmp_path, save, evaluate, capsys):
    half = [QUESTIONS[0], {**QUESTIONS[1], "answers": [], "answer_labels": [], "answer_scores": []}]
    model, data = save("vqav2", num_answers=4), data_of(tmp_path, "questions", val=half)
    assert evaluate("--model", model, "--data", data, "--out", tmp_path / "one") == 1
    assert "2 of 3 pairs say what is right; either all or none must" in capsys.readouterr().err
