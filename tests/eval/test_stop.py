"""However `llava eval` ends, its processes end with it, what they answered stays, and only one command is at work."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from uuid import uuid4

import pyarrow
import pyarrow.parquet as pq
import pytest

from llava.cli import main
from llava.errors import LlavaError
from llava.eval.workers import StopError, sole_writer, stoppable

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, and needs Linux's PR_SET_PDEATHSIG")
MARK = "LLAVA_TEST_MARK"


@pytest.fixture
def mark(monkeypatch):
    """A value that this test's processes, and all below them, have in their environment."""
    value = uuid4().hex
    monkeypatch.setenv(MARK, value)
    return value


def alive(mark: str) -> list[str]:
    """The command lines of the processes with the mark, but for this one, which was started without."""
    lines = []
    for process in Path("/proc").iterdir():
        try:
            if process.name.isdecimal() and f"{MARK}={mark}\0".encode() in (process / "environ").read_bytes():
                lines.append((process / "cmdline").read_text().replace("\0", " "))
        except OSError:  # it has just ended, or is another user's
            continue
    return lines


def wait_for(condition, seconds: float = 300):
    """Waits until the condition holds and returns what it gave."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)
    return found


GRACE = 240  # seconds after which a worker is killed that does not heed a signal
PATIENT = f"""
import sys
from llava import cli
from llava.eval import workers
workers.GRACE = {GRACE}
sys.exit(cli.main())
"""


@pytest.fixture
def many_pages(digit_pages, tmp_path):
    """The ten pages forty times: more than are answered before a signal comes."""
    folder = shutil.copytree(digit_pages, tmp_path / "pages")
    table = pq.read_table(folder / "test.parquet")
    pq.write_table(pyarrow.concat_tables([table] * 40), folder / "test.parquet")
    return folder


def test_nothing_outlives_the_command_and_the_next_goes_on(tiny_model_dir, many_pages, tmp_path, mark, capsys):
    """SIGKILL with two ranks, then SIGINT with one, on a machine without a GPU and without --device."""
    out = tmp_path / "run"
    options = ["--tasks", "digit_pages", "--model", tiny_model_dir, "--data", many_pages, "--out", out]
    options = ["eval", *map(str, options), "--batch_size", "1"]

    def started(*more: str) -> subprocess.Popen:
        command = [sys.executable, "-c", PATIENT, *options, *more]
        return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)

    def stored() -> list[str]:
        lines = [file.read_text().splitlines() for file in out.glob("digit_pages.answers/rank*.jsonl")]
        return [json.loads(line)["key"] for part in lines for line in part]

    killed = started("--processes", "2")
    wait_for(lambda: killed.poll() is not None or len(list(out.glob("*.answers/rank*.jsonl"))) == 2)
    assert main(options) == 2
    shown = capsys.readouterr().err
    assert shown == (
        f"error: {out}: another command (process {killed.pid}) is at work on digit_pages; wait for its end, stop it, "
        "or give this one a folder of its own\n"
    )
    assert sum("llava.eval.harness" in line for line in alive(mark)) == 3, "a launcher and two ranks"
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    wait_for(lambda: not alive(mark), seconds=60)
    before = stored()
    assert 0 < len(before) < 400

    stopped = started()
    wait_for(lambda: stopped.poll() is not None or len(stored()) > len(before))
    stopped.send_signal(signal.SIGINT)
    _, said = stopped.communicate(timeout=GRACE / 2)  # it ends by itself
    assert stopped.returncode == 130, said
    assert alive(mark) == []
    assert said.splitlines()[-1] == "SIGINT: stopped; what was answered and judged is stored, the same command goes on"
    assert "Traceback" not in said
    assert set(before) < set(stored())
    assert len(set(stored())) == len(stored()), "no answer was generated twice"
    assert sorted(path.name for path in out.iterdir()) == ["digit_pages.answers"]


# As launch.py and a rank: the first waits for the second, which waits for ever; both are deaf to SIGTERM if told so.
LAUNCHER = """
import os, signal, subprocess, sys, time
from llava.train.loop.stop import LAUNCHER, die_with_launcher
if sys.argv[1] == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if "RANK" in os.environ:
    die_with_launcher()
    open(sys.argv[2], "w").close()
    time.sleep(600)
os.environ |= {"RANK": "0", LAUNCHER: str(os.getpid())}
subprocess.run([sys.executable, __file__, *sys.argv[1:]])
"""
COMMAND = """
import sys
from llava.eval import workers
workers.GRACE = 0.5
try:
    with workers.stoppable():
        workers.run_worker(sys.argv[1:], __import__("os").environ)
except workers.StopError as stop:
    sys.exit(128 + stop.number)
"""


@pytest.mark.parametrize("hearing", ["hears", "deaf"])
@pytest.mark.parametrize(("number", "status"), [(2, 130), (15, 143), (9, -9)])
def test_workers_and_what_they_started_end(tmp_path, mark, number, status, hearing):
    launcher, begun = tmp_path / "launcher.py", tmp_path / "begun"
    launcher.write_text(LAUNCHER)
    command = [sys.executable, "-c", COMMAND, sys.executable, launcher, hearing, begun]
    started = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: started.poll() is not None or begun.exists(), seconds=60)
    wait_for(lambda: len(alive(mark)) == 3, seconds=60)
    started.send_signal(number)
    _, said = started.communicate(timeout=60)
    assert (started.returncode, said) == (status, "")
    wait_for(lambda: not alive(mark), seconds=60)


def test_a_rank_whose_launcher_has_ended_ends_before_it_begins(tmp_path):
    launcher, begun = tmp_path / "launcher.py", tmp_path / "begun"
    launcher.write_text(LAUNCHER)
    environment = {**os.environ, "RANK": "0", "LLAVA_LAUNCHER": "1"}
    done = subprocess.run([sys.executable, launcher, "hears", begun], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "error: process 1, which started this one, has ended\n")
    assert not begun.exists()


def test_the_first_signal_is_heard_once():
    before = signal.getsignal(signal.SIGTERM)
    with stoppable():
        with pytest.raises(StopError, match=r"^15$"):
            signal.raise_signal(signal.SIGTERM)
        assert signal.getsignal(signal.SIGINT) == signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert signal.getsignal(signal.SIGTERM) == before


# Dies, as if it were killed, and leaves behind a worker that lives as long as stdin.
DIES = """
import os, subprocess, sys
from pathlib import Path
from llava.eval.workers import sole_writer
with sole_writer(Path(sys.argv[1]), ["gqa"]) as locks:
    subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], pass_fds=locks)
    os._exit(0)
"""


def test_a_lock_lasts_until_the_last_worker_has_ended(tmp_path, monkeypatch, mark):
    monkeypatch.setattr("llava.eval.workers.PATIENCE", 0.2)
    killed = subprocess.Popen([sys.executable, "-c", DIES, tmp_path / "run"], stdin=subprocess.PIPE)
    assert killed.wait() == 0
    wait_for(lambda: len(alive(mark)) == 1, seconds=60)  # a process that has just begun has no environment yet
    with sole_writer(tmp_path / "run", ["ai2d"]):  # another task is another matter
        with pytest.raises(LlavaError, match=rf"\(process {killed.pid}\) is at work on gqa"):
            sole_writer(tmp_path / "run", ["mmvet", "gqa"]).__enter__()
        assert {path.name for path in (tmp_path / "run").iterdir()} == {".gqa.lock", ".ai2d.lock"}
    killed.stdin.close()
    wait_for(lambda: not alive(mark), seconds=60)
    for _ in range(2):
        with sole_writer(tmp_path / "run", ["gqa"]):
            assert [path.name for path in (tmp_path / "run").iterdir()] == [".gqa.lock"]
        assert list((tmp_path / "run").iterdir()) == []


@pytest.mark.parametrize(("place", "reason"), [("file", "Not a directory"), ("file/run", "Not a directory")])
def test_a_folder_that_cannot_be_written_is_named(tmp_path, place, reason):
    (tmp_path / "file").write_text("")
    with pytest.raises(LlavaError, match=rf"{place}: cannot be written: (File exists|{reason})"):
        sole_writer(tmp_path / place, ["gqa"]).__enter__()
