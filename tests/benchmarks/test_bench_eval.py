"""The benchmark of evaluation at tiny size: it runs, counts what it says, and refuses sides that answer differently."""

import argparse
import importlib
import json
import sys

import pytest

from llava.engine.engine import Engine
from llava.errors import LlavaError
from tests.eval.judge_server import Answer, JudgeServer
from tests.paths import ROOT


@pytest.fixture
def bench_eval(monkeypatch):
    """The script as a module; in a process of its own it would import everything anew."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("bench_eval")


def test_the_command(bench_eval, tiny_model_dir, tmp_path, monkeypatch, capsys):
    command = ["bench_eval.py", "--device", "cpu", "--dtype", "float32", "--tiny"]
    command += ["--layers", "2", "--runs", "1", "--batch_size", "3", "2", "--new_tokens", "3", "--pages", "4"]
    command += ["--checkpoint", tiny_model_dir, "--images", "5", "--inputs", "100x70", "384x384"]
    command += ["--json", tmp_path / "out.json"]
    monkeypatch.setattr(sys, "argv", [*map(str, command)])
    bench_eval.main()
    shown = capsys.readouterr().out
    results = json.loads((tmp_path / "out.json").read_text())["results"]
    columns = ("batch_size", "ahead", "images", "crops", "same")
    assert [tuple(result[column] for column in columns) for result in results] == [
        (1, False, 4, 4 * 5, 4),  # a page of 112 pixels is 2x2 tiles of 56
        (3, False, 4, 4 * 5, 4),
        (3, True, 4, 4 * 5, 4),
        (2, False, 4, 4 * 5, 4),
        (2, True, 4, 4 * 5, 4),
        (1, False, 5, 3 * 5 + 2 * 37, 5),  # 100x70 fills 2x2 tiles, 384x384 all 6x6
        (3, False, 5, 3 * 5 + 2 * 37, 5),
        (3, True, 5, 3 * 5 + 2 * 37, 5),
        (2, False, 5, 3 * 5 + 2 * 37, 5),
        (2, True, 5, 3 * 5 + 2 * 37, 5),
    ]
    for result in results:
        assert result["images_per_second"] == pytest.approx(result["images"] / result["seconds"])
    assert f"digit pages, {tiny_model_dir}: 4 images" in shown
    assert "noise of 100x70, 384x384, random weights: 5 images" in shown
    assert shown.count("images/s  ratio") == 2


def test_sides_that_answer_differently_are_refused(bench_eval, tiny_model_dir, monkeypatch):
    engine = Engine.from_pretrained(tiny_model_dir, device="cpu")
    monkeypatch.setattr(Engine, "generate", lambda self, dialogues, **settings: [str(len(dialogues))] * len(dialogues))
    options = argparse.Namespace(batch_size=[2], new_tokens=3, runs=1)
    with pytest.raises(LlavaError, match="pages: batches of 2 answer 1 of 3 as one at a time"):
        bench_eval.bench_case("pages", engine, bench_eval.digit_pages(3), options)


def test_a_server_takes_its_turn(bench_eval, tiny_model_dir, monkeypatch, capsys):
    server = JudgeServer(lambda payload, number: Answer("7", wait=0.05), models={str(tiny_model_dir): "somebody"})
    command = ["bench_eval.py", "--device", "cpu", "--dtype", "float32", "--runs", "2", "--batch_size", "2"]
    command += ["--new_tokens", "2", "--pages", "3", "--images", "0", "--checkpoint", str(tiny_model_dir)]
    with server.running():
        monkeypatch.setattr(sys, "argv", [*command, "--engine", server.url, "--requests", "2"])
        bench_eval.main()
    assert len(server.requests) == 3 * (1 + 2)  # once before the clock runs
    assert server.most_at_once == 2
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if " of 3" in line]
    assert [row[:2] for row in rows][-1] == ["server", "2"]
    assert [row[-3:] for row in rows] == [["3", "of", "3"]] * 3 + [["0", "of", "3"]]


def test_a_server_needs_a_checkpoint(bench_eval, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["bench_eval.py", "--engine", "vllm"])
    with pytest.raises(LlavaError, match="--engine needs --checkpoint"):
        bench_eval.main()
