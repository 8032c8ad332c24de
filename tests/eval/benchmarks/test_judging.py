"""Answers stored now and judged later, by judges that fail, die and come back."""

import gc
import json
import shutil
import subprocess
from dataclasses import asdict, replace

import pytest

from llava.cli import main
from llava.engine.engine import Engine
from llava.errors import LlavaError
from llava.eval import harness
from llava.eval import main as command
from llava.eval.harness import Job, run
from llava.eval.judge import client
from llava.eval.judge.main import judge_jobs
from llava.eval.judge.settings import JudgeSettings
from tests.eval.benchmarks.judged import MMVET, WILD, judge
from tests.eval.benchmarks.twins import scripted, write_twin
from tests.eval.benchmarks.unjudged import REALWORLDQA
from tests.eval.judge_server import Answer, JudgeServer
from tests.paths import ROOT

SECRET = "sk-never-to-be-seen"


@pytest.fixture
def predicted(tiny_model_dir, tmp_path, monkeypatch):
    """A function: the run folder in which a half-right model, gone since, has answered the twin of LLaVA-Wild."""
    gc.freeze()  # see conftest.py
    monkeypatch.setattr(Engine, "generate", scripted(WILD.half))
    monkeypatch.setattr(client, "FIRST_PAUSE", 0.01)
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    for name in ("OPENAI_API_URL", "OPENAI_BASE_URL", "MODEL_VERSION"):
        monkeypatch.delenv(name, raising=False)

    def predict(**changes):
        model = shutil.copytree(tiny_model_dir, tmp_path / "model")
        data, out = write_twin(WILD, tmp_path / "data"), tmp_path / "run"
        job = Job(str(model), WILD.task, str(data), str(out), batch_size=4, device="cpu", mode="predict", **changes)
        assert run(job) is None
        shutil.rmtree(model)
        return out

    return predict


def judged(out, server, **settings):
    """Judges the run; its results and the rows of its samples."""
    (job,) = judge_jobs([str(out)])
    job = replace(job, judge=asdict(JudgeSettings(server.url, "j", **settings)))
    folder = run(job)
    return results_of(folder), (folder / "samples.jsonl").read_text()


def results_of(folder):
    return json.loads((folder / "results.json").read_text())


@pytest.fixture
def in_this_process(monkeypatch):
    """`llava eval` runs its harness here: another process would take half a minute to import it all."""

    def run_worker(line, environment, locks):
        with monkeypatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            return harness.main(line[line.index("llava.eval.harness") + 1 :])

    monkeypatch.setattr(command, "run_worker", run_worker)


def test_a_judge_that_died_half_way_leaves_no_trace_in_the_table(predicted, tmp_path, in_this_process, capsys):
    out = predicted()
    assert not (out / WILD.task).exists()
    never_died = shutil.copytree(out, tmp_path / "other" / "run")

    with JudgeServer(judge, dies_after=2).running() as server:
        options = ["--judge", server.url, "--judge_model", "j", "--judge_parallel", "1", "--judge_retries", "0"]
        assert main(["eval", "judge", str(out), *options]) == 1
    shown = capsys.readouterr()
    assert server.keys == {f"Bearer {SECRET}"}
    assert "4 reviews to ask for, 0 stored" in shown.err
    assert "error: task llava_in_the_wild failed: 2 of 4 reviews failed: no connection" in shown.err
    assert "Traceback" not in shown.err
    failed = results_of(out / WILD.task)
    assert (failed["run"]["score"], failed["results"][WILD.task]["gpt_eval_llava_all,none"]) == (None, None)
    facts = failed["run"]["judge"]
    assert (facts["name"], facts["reviews"], facts["failed_reviews"]) == ("j", 4, 2)
    rows = [json.loads(line) for line in (out / WILD.task / "samples.jsonl").read_text().splitlines()]
    assert ["gpt_eval_llava_all" in row["scores"] for row in rows].count(True) == 2

    with JudgeServer(judge).running() as server:
        results, samples = judged(out, server)
        assert len(server.requests) == 2
        expected, expected_samples = judged(never_died, server)
        assert len(server.requests) == 6
    assert results["run"]["score"] == pytest.approx(WILD.score)
    assert (samples, results["results"]) == (expected_samples, expected["results"])
    for key in set(results["run"]) - {"out", "date", "seconds"}:
        assert results["run"][key] == expected["run"][key], key
    assert (judged(out, server)[1], len(server.requests)) == (samples, 6)  # the server is gone, the reviews are not

    written = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert len(written) > 8
    assert not any(SECRET.encode() in file.read_bytes() for file in written)
    assert SECRET not in shown.out + shown.err


def test_a_bad_key_is_one_line_and_no_score(predicted):
    out = predicted(limit=3)
    refuse = JudgeServer(lambda *_: Answer(status=401, body=f"Incorrect key {SECRET}"))
    with refuse.running(), pytest.raises(LlavaError) as caught:
        judged(out, refuse, parallel=1)
    assert str(caught.value) == (
        f"task llava_in_the_wild: 3 of 3 reviews failed: the judge at {refuse.url} does not accept the key (401); "
        f"check OPENAI_API_KEY; `llava eval judge {out}` asks for these again"
    )
    results = results_of(out / WILD.task)
    assert (results["run"]["score"], results["run"]["judge"]["failed_reviews"]) == (None, 3)


def test_what_is_not_answered_cannot_be_judged(predicted):
    out = predicted(limit=3)
    note = out / f"{WILD.task}.answers" / "job.json"
    note.write_text(note.read_text().replace('"limit": 3', '"limit": null'))
    with JudgeServer(judge).running() as server, pytest.raises(LlavaError, match=r"document 3: no stored answer"):
        judged(out, server)
    assert server.requests == []


def test_what_no_judge_reads_is_scored_later_too(tiny_model_dir, tmp_path, monkeypatch):
    gc.freeze()  # see conftest.py
    monkeypatch.setattr(Engine, "generate", scripted(REALWORLDQA.half))
    data, out = write_twin(REALWORLDQA, tmp_path / "data"), tmp_path / "run"
    assert run(Job(str(tiny_model_dir), "realworldqa", str(data), str(out), device="cpu", mode="predict")) is None
    monkeypatch.delattr(Engine, "generate")
    (job,) = judge_jobs([str(out)])
    results = results_of(run(job))
    assert (results["run"]["score"], results["run"]["judge"]) == (pytest.approx(REALWORLDQA.score), None)


def test_without_a_judge_nothing_is_started(predicted, tmp_path, tiny_model_dir, capsys):
    job = Job(str(tiny_model_dir), WILD.task, str(tmp_path / "nowhere"), str(tmp_path / "run"))
    with pytest.raises(LlavaError, match="llava_in_the_wild: no judge is named: give --judge URL"):
        run(job)
    (tmp_path / "empty").mkdir()
    options = {"--model": tiny_model_dir, "--data": tmp_path / "empty", "--out": tmp_path / "run"}
    tasks = ["--tasks", "mmvet,ai2d,dc100_en"]
    assert main(["eval", *tasks, *(str(part) for pair in options.items() for part in pair)]) == 1
    first, *_, total = capsys.readouterr().err.splitlines()
    assert first.startswith("error: mmvet, dc100_en: no judge is named: give --judge URL and --judge_model NAME (or")
    assert "--predict_only" in first
    assert "llava eval judge RUN" in first
    assert total == "error: 3 of 3 tasks failed: mmvet, ai2d, dc100_en"


def test_all_processes_answer_and_one_judges(predicted, tmp_path, tiny_model_dir, monkeypatch):
    commands = []

    def run_worker(line, environment, locks):
        commands.append(line)
        return 0

    monkeypatch.setattr(command, "run_worker", run_worker)
    settings = JudgeSettings("http://127.0.0.1:1/v1", "j")
    data = str(write_twin(MMVET, tmp_path / "mmvet"))
    job = Job(str(tiny_model_dir), "mmvet", data, str(tmp_path / "run"), judge=asdict(settings))
    assert command._failure(job, processes=2) is None
    modes = [next(json.loads(part)["mode"] for part in line if part.startswith("{")) for line in commands]
    assert modes == ["predict", "judge"]
    assert ["--nproc_per_node=2" in line for line in commands] == [True, False]
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(LlavaError, match="several processes can only answer it"):
        run(job)


def test_the_script_judges_a_run(tmp_path):
    script = ROOT / "scripts" / "eval" / "judge.sh"
    done = subprocess.run([script, tmp_path / "nowhere", "--tasks", "mmvet"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, f"error: {tmp_path / 'nowhere'}: no such run folder\n")
    done = subprocess.run([script], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert "scripts/eval/judge.sh RUN --judge" in done.stderr


def stored(out, task, scored=False):
    folder = out / f"{task}.answers"
    folder.mkdir(parents=True)
    (folder / "job.json").write_text(json.dumps(asdict(Job("m", task, "d", "elsewhere", limit=7, mode="predict"))))
    if scored:
        (out / task).mkdir()
        (out / task / "results.json").write_text("{}")


def test_judged_tasks_and_those_without_results_are_scored(tmp_path):
    for task, scored in {"mmvet": True, "dc100_en": False, "ai2d": False, "gqa": True}.items():
        stored(tmp_path, task, scored)
    options = ["--judge", "http://h/v1", "--judge_model", "j", "--judge_prices", "2", "8", "--judge_per_minute", "9"]
    jobs = {job.task: job for job in judge_jobs([str(tmp_path), *options])}
    assert set(jobs) == {"ai2d", "dc100_en", "mmvet"}
    settings = asdict(JudgeSettings("http://h/v1", "j", per_minute=9, prices=(2, 8)))
    assert jobs["mmvet"] == Job("m", "mmvet", "d", str(tmp_path), limit=7, mode="judge", judge=settings)
    assert jobs["ai2d"].judge is None
    (job,) = judge_jobs([str(tmp_path), "--tasks", "gqa", "--data", str(tmp_path)])
    assert (job.task, job.mode, job.data) == ("gqa", "judge", str(tmp_path / "gqa"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere: no such run folder"),
        (["empty"], r"empty: holds no stored answers \(no \*\.answers/job\.json\)"),
        (["run", "--tasks", "gqa"], r"run: has no answers to task 'gqa' \(found: mmvet\)"),
        (["run", "--judge", "http://h/v1"], "--judge_model NAME or MODEL_VERSION"),
        (["run", "--data", "nowhere"], "nowhere: not a dataset folder"),
        (["broken"], r"job\.json: damaged"),
    ],
)
def test_wrong_arguments_get_one_line(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MODEL_VERSION", raising=False)
    (tmp_path / "empty").mkdir()
    stored(tmp_path / "run", "mmvet")
    stored(tmp_path / "broken", "mmvet")
    (tmp_path / "broken" / "mmvet.answers" / "job.json").write_text('{"model"')
    with pytest.raises(LlavaError, match=message):
        judge_jobs(arguments)
