"""`llava eval` from the command line to the table."""

import json
import re
import shutil
import subprocess
import sys

import pytest

from llava.cli import main
from llava.eval.store import load_run
from tests.eval.benchmarks.twins import write_twin
from tests.eval.benchmarks.unjudged import GQA, REALWORLDQA
from tests.paths import ROOT

WORDS = ["-m", "llava.cli", "eval", "--tasks", "digit_pages"]  # no --device


def test_the_command_runs_the_task_and_prints_the_table(tiny_model_dir, digit_pages, tmp_path):
    """In one process; two are in test_resume.py."""
    out = tmp_path / "tiny"
    arguments = ["--model", tiny_model_dir, "--data", digit_pages, "--out", out, "--limit", 7]
    done = subprocess.run([sys.executable, *WORDS, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0].split() == ["task", "metric", "tiny"]
    (result,) = load_run(out)
    assert len(result.scores["exact_match"]) == result.run["documents"] == 7
    rows = [json.loads(line) for line in (out / "digit_pages" / "samples.jsonl").read_text().splitlines()]
    assert [row["doc"]["question_id"] for row in rows] == [f"q{index}" for index in range(7)]


def test_a_failing_task_is_reported_and_leaves_no_old_results(forked_python, tiny_model_dir, digit_pages, tmp_path):
    data = shutil.copytree(digit_pages, tmp_path / "data")
    (data / "test.parquet").write_bytes(b"broken")
    stale = tmp_path / "run" / "digit_pages"
    stale.mkdir(parents=True)
    arguments = ["--model", tiny_model_dir, "--data", data, "--out", tmp_path / "run"]
    done = subprocess.run([forked_python.command, *WORDS, *map(str, arguments)], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert f"error: task digit_pages: the data set {data} cannot be loaded" in done.stderr
    assert f"error: task digit_pages failed: the data set {data} cannot be loaded" in done.stderr
    assert "Traceback" not in done.stderr
    assert not stale.exists()


def test_a_failing_benchmark_leaves_the_others_alone(forked_python, tiny_model_dir, tmp_path, monkeypatch):
    """Through the script, in two processes, with data of two benchmarks, one of them broken, and of a third none."""
    write_twin(REALWORLDQA, tmp_path / "data" / "realworldqa", plain=True)
    write_twin(GQA, tmp_path / "data" / "gqa")
    for file in (tmp_path / "data" / "gqa").glob("*_images/*.parquet"):
        file.write_bytes(b"broken")
    options = ["--tasks", "gqa,ai2d,realworldqa", "--limit", 3, "--data", tmp_path / "data"]
    script = ROOT / "scripts" / "eval" / "benchmarks.sh"
    command = [script, tiny_model_dir, *options, "--processes", 2, "--out", tmp_path / "tiny"]
    monkeypatch.setenv("PATH", forked_python.path)
    done = subprocess.run([*map(str, command)], capture_output=True, text=True)
    assert done.returncode == 1
    assert "RetryError" not in done.stderr
    told = done.stderr.count(f"error: task gqa: the data set {tmp_path / 'data' / 'gqa'} cannot be")
    assert told == 1  # by two ranks
    *_, gqa, ai2d, total = done.stderr.splitlines()
    assert gqa.startswith(f"error: task gqa failed: the data set {tmp_path / 'data' / 'gqa'} cannot be loaded (")
    assert ai2d == f"error: task ai2d failed: {tmp_path / 'data' / 'ai2d'}: no such dataset folder"
    assert total == "error: 2 of 3 tasks failed: gqa, ai2d"
    (result,) = load_run(tmp_path / "tiny")
    assert (result.task, result.run["limit"], result.run["documents"]) == ("realworldqa", 3, 3)
    assert result.run["score"] == pytest.approx(100 * sum(result.scores["exact_match"]) / 3)
    assert done.stdout.startswith("1 of 20 benchmarks")
    assert "RealWorldQA" in done.stdout


@pytest.mark.parametrize("script", ["benchmarks", "judge"])
def test_the_scripts_show_their_usage_and_name_a_wrong_argument(script):
    def run(word):
        return subprocess.run([ROOT / f"scripts/eval/{script}.sh", word], capture_output=True, text=True, check=False)

    for word in ("--help", "-h"):
        done = run(word)
        assert (done.returncode, done.stderr) == (0, "")
        assert (
            f"    scripts/eval/{script}.sh " in done.stdout
            or f"OPENAI_API_KEY=... scripts/eval/{script}.sh" in done.stdout
        )
    done = run("--tasks")
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"error: the first argument is .+, found '--tasks'; see \S+ --help\n", done.stderr)


def test_the_script_wants_a_model():
    done = subprocess.run(["bash", ROOT / "scripts" / "eval" / "benchmarks.sh"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "scripts/eval/benchmarks.sh MODEL [--tasks" in done.stderr


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"--model": "nowhere"}, "nowhere: no such model folder"),
        ({"--dtype": "fp16"}, "unknown dtype 'fp16'; choose auto, float32, bfloat16, float16"),
        ({"--tasks": "digit_pages,crosswords"}, "unknown task 'crosswords'; choose of vqav2_val, "),
        ({"--data": "nowhere"}, "nowhere: not a dataset folder"),
        ({"--limit": "0"}, "--limit must be at least 1, found 0"),
        ({"--batch_size": "-2"}, "--batch_size must be at least 1, found -2"),
        ({"--processes": "0"}, "--processes must be at least 1, found 0"),
        ({"--rerank": "4"}, "--rerank is for retrieval by a two-tower model; {model} generates text"),
    ],
)
def test_wrong_arguments_get_one_line(tiny_model_dir, digit_pages, tmp_path, capsys, changes, message):
    arguments = {"--model": tiny_model_dir, "--tasks": "digit_pages", "--data": digit_pages, "--out": tmp_path / "run"}
    arguments |= changes
    assert main(["eval", *(str(part) for pair in arguments.items() for part in pair)]) == 2
    shown = capsys.readouterr()
    assert message.replace("{model}", str(tiny_model_dir)) in shown.err
    assert (shown.out, shown.err.count("\n")) == ("", 1)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, "not a model folder (no config.json)"),
        ('{"model_type": "llava_onevision"}', "llava convert import {folder} --out DIR makes one of it"),
        ('{"model_type": "llava_qwen"}', "llava convert import {folder} --out DIR makes one of it"),
        ('{"model_type": "siglip"}', "a model of type 'siglip'; expected llava_ov_manager"),
    ],
)
def test_another_kind_of_folder_is_told_before_anything_heavy_is_loaded(tmp_path, config, message):
    folder = tmp_path / "model"
    folder.mkdir()
    if config is not None:
        (folder / "config.json").write_text(config)
    code = "import sys; from llava.cli import main; print(main(sys.argv[1:]));"
    code += "print([name for name in ('torch', 'transformers', 'lmms_eval', 'datasets') if name in sys.modules])"
    arguments = ["eval", "--tasks", "ai2d,gqa", "--model", folder, "--data", tmp_path, "--out", tmp_path / "run"]
    done = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True)
    assert done.stdout == "2\n[]\n"
    assert message.format(folder=folder) in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_report_is_a_part_of_the_command(tmp_path, capsys):
    assert main(["eval", "report", str(tmp_path / "nowhere")]) == 2
    assert "no such run folder" in capsys.readouterr().err
