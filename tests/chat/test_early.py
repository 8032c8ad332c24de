"""What is wrong with the arguments is told before torch is imported, and Ctrl-C while a model loads is one line."""

import json
import resource
import subprocess
import sys

import pytest

from llava.cli import main
from llava.engine.engine import Engine
from llava.errors import LlavaError
from tests.chat.test_cli import spawn

SCRIPT = """
import json, sys
from llava.cli import main
for arguments in json.loads(sys.argv[1]):
    try:
        status = main(["chat", *arguments])
    except SystemExit as error:
        status = error.code
    assert status == (0 if "--help" in arguments else 2), (arguments, status)
    heavy = {"torch", "transformers"} & set(sys.modules)
    assert not heavy, (arguments, heavy)
"""


def test_help_and_early_errors_do_not_wait_for_torch(tiny_model_dir, tmp_path):
    model = ("--model", str(tiny_model_dir))
    (tmp_path / "log.jsonl").touch()
    arguments = [
        ["--help"],
        ["Hi"],
        ["--model", str(tmp_path / "nowhere"), "Hi"],
        ["--model", str(tmp_path), "Hi"],
        [*model, "--image", "nowhere.png", "Hi"],
        [*model, "--video", "nowhere.mp4", "Hi"],
        [*model, "/nowhere/a.png what?"],
        [*model, "nowhere.png"],
        [*model, "--temperature", "hot", "Hi"],
        [*model, "--temperature", "-1", "Hi"],
        [*model, "--top-k", "-1", "Hi"],
        [*model, "--repetition_penalty", "0", "Hi"],
        [*model, "--seed", "x", "Hi"],
        [*model, "--dtype", "int3", "Hi"],
        [*model, "--modle", "x"],
        [*model, "--system", "<image>", "Hi"],
        [*model, "--load", str(tmp_path / "nowhere.jsonl"), "Hi"],
        [*model, "--log", str(tmp_path / "log.jsonl"), "Hi"],
        [*model, "--log", str(tmp_path / "no/log.jsonl"), "Hi"],
        [*model, " "],
    ]
    begin = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", SCRIPT, json.dumps(arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("error: ") == len(arguments) - 1 == done.stderr.count("\n")
    end = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert end.ru_utime + end.ru_stime - begin.ru_utime - begin.ru_stime < 10


def test_widths_that_cannot_be_quantised_are_one_line(tiny_model_dir, capsys):
    pytest.importorskip("bitsandbytes")
    message = f"{tiny_model_dir} cannot be loaded in 4 bits: hidden_size is 24, no multiple of 64"
    with pytest.raises(LlavaError, match=message):
        Engine.from_pretrained(tiny_model_dir, device="cpu", load_4bit=True)
    assert main(["chat", "--model", str(tiny_model_dir), "--device", "cpu", "--load-4bit", "Hi"]) == 2
    assert capsys.readouterr() == ("", f"error: {message}\n")


def test_an_interrupt_while_the_model_loads_is_one_line(tiny_model_dir, tmp_path):
    for question in ([], ["Hi"]):
        child = spawn(["--model", tiny_model_dir, *question], tmp_path / "state", TERM="xterm")
        child.expect_exact(f"loading {tiny_model_dir}")
        child.sendintr()
        child.expect_exact("interrupted")
        rest = child.read()
        child.close()
        assert "Traceback" not in rest
        assert child.exitstatus == 130
