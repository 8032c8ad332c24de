"""A rank that dies ends all within a minute, though the others wait for it and take no notice of SIGTERM."""

import os
import platform
import re
import subprocess
import sys
import time

import pytest

from tests.ports import free_port

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
    started = time.monotonic()
    found = ends(tmp_path, "dies", hosts)
    print(f"all ended {time.monotonic() - started:.0f} s after the start")
    first, last = found[0], found[-1]
    (line,) = re.findall(r"^error: rank 1 on .* has ended; .*$", first[1], re.M)
    assert line.startswith(f"error: rank 1 on {platform.node()} (process ")
    assert "was killed by SIGKILL" in last[1]
    assert [status for status, _ in found] == ([137] if hosts == 1 else [2, 137])


@pytest.mark.slow
def test_a_rank_that_leaves_before_the_others_ends_nothing(tmp_path):
    found = ends(tmp_path, "leaves", 1)
    assert found == [(0, "")]
