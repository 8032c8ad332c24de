"""A rank that dies ends all within a minute, though the others wait for it and take no notice of SIGTERM."""

import ctypes
import os
import platform
import re
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path

import pytest
from torch import distributed

from llava.train.ranks import watch
from tests.ports import free_port
from tests.train.run_ranks import fork_context, run_rank

# What waits as a rank does in a collective of NCCL: for ever, and heedless of the SIGTERM of its launcher.
RANK = """
import os, signal, sys, time
from llava.train.ranks import watch
watch.GRACE = 2
watch.start_watch()
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.environ["RANK"] == "1":
    time.sleep(2)
    if "leaves" in sys.argv:
        watch.end_watch()
    else:
        open(__file__ + ".died", "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
else:
    time.sleep(20 if "leaves" in sys.argv else 500)
    watch.end_watch()
"""


def ends(folder, word: str, hosts: int) -> list[tuple[int, str]]:
    """(status, output) of the launchers of two ranks."""
    (folder / "rank.py").write_text(RANK)
    meeting = ["--nnodes", hosts, "--master_addr", "127.0.0.1", "--master_port", free_port()]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    launchers = []
    for host in range(hosts):
        options = [*meeting, "--node_rank", host, "--nproc_per_node", 2 // hosts, folder / "rank.py", word]
        command = [sys.executable, "-m", "llava.train.launch", *map(str, options)]
        environment = {**os.environ, "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "600", "OMP_NUM_THREADS": "1"}
        launchers.append(subprocess.Popen(command, **streams, env=environment))
    try:
        return [(launcher.wait(150), launcher.stdout.read()) for launcher in launchers]
    finally:
        for launcher in launchers:
            launcher.kill()
            launcher.stdout.close()


@pytest.mark.slow
@pytest.mark.parametrize("hosts", [1, 2])
def test_a_rank_that_dies(tmp_path, hosts):
    found, ended = ends(tmp_path, "dies", hosts), time.time()
    died = (tmp_path / "rank.py.died").stat().st_mtime
    assert ended - died < 60 - watch.GRACE, "within a minute, but for what GRACE is longer in a run"
    first, last = found[0], found[-1]
    (line,) = re.findall(r"^error: rank 1 on .* has ended; .*$", first[1], re.M)
    assert line.startswith(f"error: rank 1 on {platform.node()} (process ")
    assert "was killed by SIGKILL" in last[1]
    assert [status for status, _ in found] == ([137] if hosts == 1 else [2, 137])


@pytest.mark.slow
def test_a_rank_that_leaves_before_the_others_ends_nothing(tmp_path):
    found = ends(tmp_path, "leaves", 1)
    assert found == [(0, "")]


BUSY, SILENT = 1.2, 2.5  # seconds for which a rank holds Python's lock, and after which one counts as dead
PROCESSES = 3


def live() -> None:
    """One rank that works, heedless of SIGTERM, as in a collective; it is busy on SIGUSR1 and leaves on SIGUSR2."""
    watch.LOOK, watch.SILENT, watch.GRACE = SILENT / 25, SILENT, 0.5
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, lambda *_: ctypes.PyDLL(None).usleep(int(BUSY * 1e6)))
    signal.signal(signal.SIGUSR2, lambda *_: watch.end_watch())
    watch.start_watch()
    while True:
        time.sleep(0.1)


def serve(port: int) -> None:
    """The store through which the ranks find each other."""
    with_nobody = {"is_master": True, "wait_for_workers": False, "timeout": timedelta(seconds=60)}
    store = distributed.TCPStore("127.0.0.1", port, **with_nobody)
    time.sleep(500)
    del store


class Ranks:
    """A context of PROCESSES ranks that no launcher started, and of `host`, their store's; all have begun."""

    def __init__(self, folder: Path):
        self.logs = [folder / f"rank-{rank}.log" for rank in range(PROCESSES)]

    def __enter__(self) -> "Ranks":
        context, port = fork_context(), free_port()
        self.host = context.Process(target=serve, args=(port,))
        starts = [(live, (), rank, PROCESSES, port, log) for rank, log in enumerate(self.logs)]
        self.ranks = [context.Process(target=run_rank, args=arguments) for arguments in starts]
        self.stack = ExitStack()
        for process in (self.host, *self.ranks):
            process.start()
            self.stack.callback(process.join)
            self.stack.callback(process.kill)
        store = watch.ends_store("127.0.0.1", port)
        while not store.check([f"alive/{rank}" for rank in range(PROCESSES)]):
            time.sleep(0.05)
        return self

    def __exit__(self, *_) -> None:
        self.stack.close()

    def send(self, number: signal.Signals, *processes) -> None:
        for process in processes:
            os.kill(process.pid, number)

    def ends(self, *ranks: int) -> list[int | None]:
        """The statuses of these, once they have ended or should have."""
        deadline = time.monotonic() + 4 * SILENT
        for rank in ranks:
            self.ranks[rank].join(max(0, deadline - time.monotonic()))
        return [self.ranks[rank].exitcode for rank in ranks]

    def told(self) -> str:
        """The line of the first rank."""
        (line,) = re.findall(r"^error: (.*)$", self.logs[0].read_text(), re.M)
        return line


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_rank_of_which_no_launcher_tells(tmp_path, number):
    with Ranks(tmp_path) as run:
        run.send(number, run.ranks[1])
        assert run.ends(0, 2) == [2, 2]
        place = f"rank 1 on {platform.node()} (process {run.ranks[1].pid})"
    end = f"the processes of {platform.node()} end with it"
    assert run.told() == f"{place} has given no sign of life for {SILENT} s; {end}"


@pytest.mark.parametrize(
    ("number", "end"), [(signal.SIGKILL, "has ended"), (signal.SIGSTOP, f"has not answered for {SILENT} s")]
)
def test_the_host_where_the_ranks_meet(tmp_path, number, end):
    with Ranks(tmp_path) as run:
        run.send(number, run.host)
        assert run.ends(0, 1, 2) == [2, 2, 2]
    assert run.told().startswith(f"127.0.0.1, through which the ranks meet, {end}; ")


def test_what_ends_no_run(tmp_path):
    """A rank that holds Python's lock, a run that is suspended as a whole, a rank that leaves; then one dies."""
    with Ranks(tmp_path) as run:
        everything = (run.host, *run.ranks)
        run.send(signal.SIGUSR1, run.ranks[1])
        time.sleep(BUSY)
        run.send(signal.SIGSTOP, *everything)
        time.sleep(SILENT * 1.2)
        run.send(signal.SIGCONT, *everything)
        run.send(signal.SIGUSR2, run.ranks[1])
        time.sleep(SILENT * 1.2)
        assert [process.exitcode for process in everything] == [None] * 4
        run.send(signal.SIGKILL, run.ranks[2])
        assert run.ends(0) == [2]
        assert run.ranks[1].exitcode is None
    assert run.told().startswith("rank 2 on ")
