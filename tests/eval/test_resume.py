"""A run that is killed while it answers goes on, with another number of processes, and ends in the same table."""

import json
import signal
import subprocess
from dataclasses import asdict

from llava.eval import harness
from llava.eval.answers import AnswerStore
from llava.eval.harness import Job

# Dies by SIGKILL in the middle of its sixth answer's line, in the second batch of four.
KILLED = """
import os, signal, sys
from llava.eval import answers, harness

append = answers.AnswerStore.append

def append_and_die(store, key, doc_id, answer, **facts):
    if len(store._rows) == 5:
        with store._file.open("a") as stream:
            stream.write('{"key": "' + key)
        os.kill(os.getpid(), signal.SIGKILL)
    append(store, key, doc_id, answer, **facts)

answers.AnswerStore.append = append_and_die
harness.main(sys.argv[1:])
"""


def test_killed_resumed_by_two_processes_and_read_again(
    forked_python, tiny_model_dir, digit_pages, tmp_path, monkeypatch
):
    def job(out):
        data, settings = str(digit_pages), {"batch_size": 4, "device": "cpu"}
        return Job(model=str(tiny_model_dir), task="digit_pages", data=data, out=str(tmp_path / out), **settings)

    def rows(out):
        return (tmp_path / out / "digit_pages" / "samples.jsonl").read_text()

    def scores(out):
        return json.loads((tmp_path / out / "digit_pages" / "results.json").read_text())["results"]

    harness.run(job("whole"))
    assert len({json.loads(row)["answer"] for row in rows("whole").splitlines()}) > 5

    killed = subprocess.run([forked_python.command, "-c", KILLED, json.dumps(asdict(job("run")))], capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    answers = tmp_path / "run" / "digit_pages.answers"
    left = (answers / "rank0.jsonl").read_bytes()
    assert left.count(b"\n") == 5
    assert not left.endswith(b"\n")
    assert not (tmp_path / "run" / "digit_pages").exists()

    command = [forked_python.command, "-m", "llava.cli", "eval", "--tasks", "digit_pages", "--device", "cpu"]
    command += ["--model", tiny_model_dir, "--data", digit_pages, "--out", tmp_path / "run", "--batch_size", "4"]
    resumed = subprocess.run([*map(str, command), "--processes", "2"], capture_output=True, text=True)
    assert resumed.returncode == 0, resumed.stderr
    assert (rows("run"), scores("run")) == (rows("whole"), scores("whole"))
    stored = [(answers / f"rank{rank}.jsonl").read_bytes() for rank in range(2)]
    assert stored[0].startswith(left[: left.rindex(b"\n") + 1])
    assert sum(lines.count(b"\n") for lines in stored) == 10, "each answer was generated once"
    assert stored[1].count(b"\n") > 0

    monkeypatch.setattr(AnswerStore, "append", None)  # nothing is generated
    harness.run(job("run"))
    assert (rows("run"), scores("run")) == (rows("whole"), scores("whole"))
