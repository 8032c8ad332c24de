"""The plugin and the digit-pages task through the real lmms-eval, with a tiny model of random weights."""

import re
import shutil
import subprocess
import sys
from itertools import chain

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from lmms_eval import evaluator
from lmms_eval.models import get_model
from tenacity import Future, RetryError

from llava.engine.engine import Engine
from llava.errors import LlavaError
from llava.eval import lmms_model, task
from llava.eval.harness import Job, run
from llava.eval.plugin import MODEL_ID
from llava.eval.report.comparison import build_report
from llava.eval.store import load_run

# Document i accepts "i" and "the i", and its kind is place, read, count, compare in turn. (answer, ANLS, exact match)
SCRIPT = [
    ("0", 1.0, 1),
    ("The  1", 1.0, 1),  # case and spaces do not count
    ("thx 2", 0.8, 0),  # one of five letters is wrong
    ("99", 0.0, 0),
    ("5", 0.0, 0),
    ("", 0.0, 0),
    ("6", 1.0, 1),
    ("7", 1.0, 1),
    ("8", 1.0, 1),
    ("the9", 0.8, 0),
]


@pytest.fixture
def job(tiny_model_dir, digit_pages, tmp_path):
    """A function: changes to a job on the tiny model."""

    def make(**changes):
        settings = {"out": str(tmp_path / "run"), "batch_size": 4, "device": "cpu"} | changes
        settings = {"data": str(digit_pages)} | settings
        return Job(model=str(tiny_model_dir), task="digit_pages", **settings)

    return make


@pytest.fixture
def batches(monkeypatch):
    """Scripted answers instead of generated ones; collects the batches that the engine was asked."""
    asked = []

    def answer(engine, dialogues, *, inputs, **settings):
        asked.append((engine, list(dialogues), settings))
        places = [re.search(r"place (\d+)", dialogue.turns[-1].text)[1] for dialogue in dialogues]
        return [SCRIPT[int(place)][0] for place in places]

    monkeypatch.setattr(Engine, "generate", answer)
    return asked


def test_scores_are_those_computed_by_hand(job, batches):
    folder = run(job())
    (result,) = load_run(folder.parent)
    assert result.scores["anls"] == pytest.approx([anls for _, anls, _ in SCRIPT])
    assert result.scores["exact_match"] == [float(exact) for *_, exact in SCRIPT]
    by_kind = {kind: result.scores[f"exact_match_{kind}"] for kind in ("place", "read", "count", "compare")}
    assert by_kind == {"place": [1, 0, 1], "read": [1, 0, 0], "count": [0, 1], "compare": [0, 1]}
    assert (result.run["documents"], result.run["versions"]["lmms-eval"], result.run["arm"]) == (10, "0.7.3", None)

    rows = build_report([folder.parent]).rows
    values = {metric: cells["run"].value for (_, metric), cells in rows.items()}
    assert values["anls"] == pytest.approx(66.0)
    assert values["exact_match"] == pytest.approx(50.0)
    assert values["exact_match_place"] == pytest.approx(200 / 3)


def test_requests_are_batched_longest_first_with_the_tasks_settings(job, batches, monkeypatch):
    monkeypatch.setattr(lmms_model, "WINDOW", 3)
    run(job(batch_size=2))
    assert [len(dialogues) for _, dialogues, _ in batches] == [2] * 5
    lengths = [[engine.count_tokens(dialogue) for dialogue in dialogues] for engine, dialogues, _ in batches]
    for window in (lengths[:3], lengths[3:]):
        flat = list(chain.from_iterable(window))
        assert flat == sorted(flat, reverse=True)
        assert len(set(flat)) > 1
    greedy = {"max_new_tokens": 16, "temperature": 0.0, "top_p": None, "num_beams": 1, "stop": ()}
    assert all(settings == greedy for *_, settings in batches)


def test_a_limit_takes_the_first_documents(job, batches):
    (result,) = load_run(run(job(limit=3)).parent)
    assert result.scores["exact_match"] == [1.0, 1.0, 0.0]


def test_the_blind_model_sees_noise_of_the_same_sizes(job, batches):
    def pages_seen(**changes):
        batches.clear()
        changes["out"] = f"{job().out}{len(changes)}"  # each run asks everything
        (result,) = load_run(run(job(**changes)).parent)
        assert result.run["image_noise"] is changes.get("image_noise", False)
        dialogues = chain.from_iterable(dialogues for _, dialogues, _ in batches)
        return {dialogue.turns[0].text: np.asarray(dialogue.images[0]) for dialogue in dialogues}

    seen, blind, again = pages_seen(), pages_seen(image_noise=True), pages_seen(image_noise=True, batch_size=1)
    assert len(seen) == 10
    for question, page in seen.items():
        assert page.shape == blind[question].shape
        assert not np.array_equal(page, blind[question])
        assert np.array_equal(blind[question], again[question])


def test_a_lost_document_is_an_error_and_leaves_no_results(job, batches, monkeypatch, tmp_path):
    evaluate = evaluator.simple_evaluate

    def lossy(**arguments):
        results = evaluate(**arguments)
        del results["samples"]["digit_pages"][4]
        return results

    monkeypatch.setattr(evaluator, "simple_evaluate", lossy)
    with pytest.raises(LlavaError, match="task digit_pages: 9 of 10 documents have one answer"):
        run(job())
    assert not (tmp_path / "run" / "digit_pages").exists()


def test_predicting_scores_nothing_and_saves_no_results(job, batches, tmp_path, monkeypatch):
    def scored(*arguments):
        raise AssertionError("an answer was scored")

    read_task = task.task_config
    monkeypatch.setattr(task, "task_config", lambda *asked: read_task(*asked) | {"process_results": scored})
    assert run(job(mode="predict")) is None
    assert sum(len(dialogues) for _, dialogues, _ in batches) == 10
    assert not (tmp_path / "run" / "digit_pages").exists()


def test_what_a_retry_hides_is_told(job, monkeypatch):
    def tried_five_times(**arguments):
        attempt = Future(5)
        attempt.set_exception(KeyError("answers"))
        raise RetryError(attempt)

    monkeypatch.setattr(evaluator, "simple_evaluate", tried_five_times)
    with pytest.raises(LlavaError, match=r"task digit_pages: an answer cannot be scored \(KeyError: 'answers'\)"):
        run(job())


def test_a_document_that_cannot_be_asked_is_named(job, monkeypatch):
    def fail(messages, max_frames, places):
        raise LlavaError("no such page")

    monkeypatch.setattr(lmms_model, "dialogue_from", fail)
    with pytest.raises(LlavaError, match="digit_pages document 0: no such page"):
        run(job())


def test_a_first_document_that_is_no_image_is_named_like_any_other(job, digit_pages, tmp_path):
    """The harness itself looks at the first document before it asks the model anything."""
    damaged = shutil.copytree(digit_pages, tmp_path / "damaged")
    table = pq.read_table(damaged / "test.parquet")
    rows = table.to_pylist()
    rows[0]["image"]["bytes"] = b"nothing to see"
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), damaged / "test.parquet")
    with pytest.raises(LlavaError, match=r"digit_pages document 0: not an image that Pillow can read \(1 of 10 doc"):
        run(job(data=str(damaged)))
    assert (tmp_path / "run" / "digit_pages.answers" / "rank0.jsonl").read_text().count("\n") == 9


def test_tasks_that_need_likelihoods_are_refused(tiny_model_dir):
    model = get_model(MODEL_ID)(str(tiny_model_dir), device="cpu")
    assert isinstance(model, lmms_model.LlavaOVManager)
    with pytest.raises(LlavaError, match="answers by generating text"):
        model.loglikelihood([])
    with pytest.raises(LlavaError, match="several rounds"):
        model.generate_until_multi_round([])
    with pytest.raises(LlavaError, match="batch_size must be a whole number from 1, found 'auto'"):
        get_model(MODEL_ID)(str(tiny_model_dir), batch_size="auto", device="cpu")


def test_the_plugin_is_found_by_its_entry_point_and_is_light():
    code = (
        "import sys; from importlib.metadata import entry_points;"
        "(plugin,) = entry_points(group='lmms_eval.models', name='llava_ov_manager');"
        "manifest = plugin.load()();"
        "print(manifest.model_id, manifest.chat_class_path, manifest.simple_class_path, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    classes = ["llava.eval.lmms_model.LlavaOVManager", "llava.eval.lmms_model.SimpleLlavaOVManager"]
    assert done.stdout.split() == ["llava_ov_manager", *classes, "False"]


def test_a_task_ends_before_pythons_shutdown():
    """Which aborts a process whose threads it finds in torch's C++, when all is done."""
    code = (
        "import runpy, sys\n"
        "class Shutdown:\n    def __del__(self): print('Python shut down')\n"
        "kept = Shutdown()\nsys.argv = ['harness', '{}']\nrunpy.run_module('llava.eval.harness', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert "TypeError: Job" in done.stderr
