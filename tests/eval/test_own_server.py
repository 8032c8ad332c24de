"""`llava eval --engine vllm`: a server is started for the run, asked, and ended, however the run ends.

The server is `llava serve`, which becomes a stand-in of vLLM's; tests/eval/test_vllm_engine.py has the real one.
"""

import os
import signal
import stat
import sys
import time
from argparse import Namespace

import pytest

from llava.cli import main
from llava.errors import LlavaError
from llava.eval.server import own
from llava.eval.server.own import LOG, own_server
from llava.eval.server.settings import ServerSettings
from llava.eval.store import load_run
from llava.eval.workers import StopError, stoppable

STAND_IN = """\
#!{python}
import json, os, signal, subprocess, sys, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

if "-c" in sys.argv:
    print("{release}")
    sys.exit()
words = sys.argv[sys.argv.index("-m") + 1 :]
print("told", *words, json.loads(os.environ["LLAVA_SERVE"])["model"], flush=True)
if {fails}:
    sys.exit("RuntimeError: no memory")
if {stubborn}:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
subprocess.Popen(["sleep", "1000"])  # as vLLM's engine is a process of its own

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.reply({{}})

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        asked = json.dumps([request["model"], request["repetition_penalty"]])
        print(f"asked {{asked}}\\n", end="", flush=True)  # in one piece, whatever other threads print
        question = request["messages"][-1]["content"][-1]["text"]
        self.reply({{"choices": [{{"message": {{"content": question.split("place ")[1][0]}}}}]}})

    def reply(self, content):
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass

ThreadingHTTPServer(("127.0.0.1", int(words[words.index("--port") + 1])), Handler).serve_forever()
"""


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """A function that makes LLAVA_VLLM_PYTHON name such a Python."""

    def make(release: str = "0.32.0", fails: bool = False, stubborn: bool = False) -> None:
        python = tmp_path / "python"
        python.write_text(STAND_IN.format(python=sys.executable, release=release, fails=fails, stubborn=stubborn))
        python.chmod(python.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("LLAVA_VLLM_PYTHON", str(python))

    return make


def arguments(model, out) -> Namespace:
    return Namespace(model=model, out=out, dtype="float32", requests=3, options=[])


def serving(out) -> list[str]:
    """The processes whose standard output is the run's log, of those that have not ended."""
    found = []
    for process in filter(str.isdecimal, os.listdir("/proc")):
        try:
            if os.readlink(f"/proc/{process}/fd/1") == str(out / LOG):
                found.append(process)
        except OSError:  # it has just ended, or is another user's
            continue
    return found


def ended(out) -> bool:
    """Whether they all have; what was killed takes a moment."""
    end = time.monotonic() + 60
    while serving(out) and time.monotonic() < end:
        time.sleep(0.01)
    return serving(out) == []


def test_a_run_starts_it_stores_its_answers_and_ends_it(stand_in, tiny_model_dir, digit_pages, tmp_path, capfd):
    stand_in()
    out = tmp_path / "run"
    options = ["--tasks", "digit_pages", "--model", tiny_model_dir, "--data", digit_pages, "--engine", "vllm"]
    command = ["eval", *map(str, options), "--out", str(out), "--dtype", "float32", "--", "--seed", "3"]
    assert main(command) == 0
    assert capfd.readouterr().out.splitlines()[0].split() == ["task", "metric", "run"]
    (result,) = load_run(out)
    assert result.run["engine"] == "vllm"
    assert (result.run["model"], result.run["weights"][:3] != "not") == (str(tiny_model_dir), True)
    assert sum(result.scores["exact_match"]) == 10
    assert ended(out)
    lines = (out / LOG).read_text().splitlines()
    (told,) = (line for line in lines if line.startswith("told"))
    assert "--dtype float32 --tokenizer-mode llava_ov_manager" in told
    assert "--middleware llava.serve.middleware.ToldByVariable --seed 3" in told
    assert [line for line in lines if line.startswith("asked")] == [f'asked ["{tiny_model_dir}", 1.0]'] * 10


def test_another_port_is_the_same_engine():
    """So that a run goes on from its stored answers."""
    first, second = (ServerSettings(f"http://127.0.0.1:{port}/v1", "model", "vllm") for port in (1, 2))
    assert first.identity == second.identity
    assert (first.place, ServerSettings(first.url, "model").place) == ("this machine", first.url)


@pytest.mark.parametrize("stubborn", [False, True])
def test_it_ends_when_the_run_fails(stubborn, stand_in, tiny_model_dir, tmp_path, monkeypatch, capsys):
    """And what it started, and where it does not heed SIGTERM."""
    stand_in(stubborn=stubborn)
    if stubborn:
        monkeypatch.setattr(own, "GRACE", 1.0)
    out = tmp_path / "run"

    def run():
        with own_server(arguments(tiny_model_dir, out)) as server:
            assert len(serving(out)) == 2
            assert (server.engine, server.requests, server.dtype) == ("vllm", 3, "float32")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run()
    assert ended(out)
    assert ("is killed" in capsys.readouterr().err) == stubborn


def test_it_ends_at_ctrl_c_while_it_starts(stand_in, tiny_model_dir, tmp_path, monkeypatch):
    stand_in()

    def interrupted(*_):
        while len(serving(tmp_path / "run")) < 1:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(own, "_wait", interrupted)
    with pytest.raises(StopError), stoppable(), own_server(arguments(tiny_model_dir, tmp_path / "run")):
        pytest.fail("entered")
    assert ended(tmp_path / "run")


def test_why_it_did_not_start(stand_in, tiny_model_dir, tmp_path):
    stand_in(fails=True)
    log = tmp_path / "run" / LOG
    reason = f"vLLM ended while it started; {log} says why, its last line: RuntimeError: no memory"
    with pytest.raises(LlavaError) as failed, own_server(arguments(tiny_model_dir, tmp_path / "run")):
        pytest.fail("entered")
    assert str(failed.value) == reason


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--batch_size 4", "--batch_size says nothing to --engine vllm; leave one of them out"),
        ("--engine transformers -- --seed 3", "--seed is for --engine vllm"),
        ("--device cpu", "--device says nothing to --engine vllm"),
        ("", "llava-ov-manager's plugin fits vLLM 0.32 to 0.33, and this is vLLM 0.31.0"),
    ],
)
def test_what_it_cannot_keep_to(words, message, stand_in, tiny_model_dir, tmp_path, capsys):
    stand_in(release="0.31.0")
    command = ["eval", "--model", str(tiny_model_dir), "--out", str(tmp_path / "run"), "--engine", "vllm"]
    assert main([*command, "--tasks", "digit_pages", *words.split()]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_how_to_install_it(tiny_model_dir, tmp_path, monkeypatch, capsys):
    command = ["eval", "--model", str(tiny_model_dir), "--out", str(tmp_path / "run"), "--engine", "vllm"]
    monkeypatch.delenv("LLAVA_VLLM_PYTHON", raising=False)
    assert main([*command, "--tasks", "digit_pages"]) == 2
    assert "vLLM is not installed; docs/serve.md says how" in capsys.readouterr().err
    monkeypatch.setenv("LLAVA_VLLM_PYTHON", str(tmp_path / "none"))
    assert main([*command, "--tasks", "digit_pages"]) == 2
    assert f"LLAVA_VLLM_PYTHON: {tmp_path / 'none'} cannot be run" in capsys.readouterr().err
