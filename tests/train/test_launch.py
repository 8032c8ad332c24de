"""Which rank the launcher names when several have ended: the one that the others followed."""

import platform
import subprocess
import sys

import pytest
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from llava.train import launch

FOLLOWED = """
import os, pathlib, signal, sys, time
rank, folder, first = int(os.environ["RANK"]), sys.argv[1], int(sys.argv[2])
(file := pathlib.Path(folder, f"new{rank}")).write_text(str(os.getpid()))
file.rename(f"{folder}/process{rank}")
other = pathlib.Path(folder, f"process{1 - rank}")
while not other.exists():
    time.sleep(0.01)
time.sleep(0.6)  # the launcher has seen both then
if rank != first:
    stat = pathlib.Path("/proc", other.read_text(), "stat")
    while stat.read_text().split()[2] != "Z":
        time.sleep(0.01)
    time.sleep(0.05)
exec(sys.argv[3 + rank])
"""
KILLED, RAISED = "os.kill(os.getpid(), signal.SIGKILL)", "os._exit(3)"


@pytest.mark.parametrize(
    ("first", "ends", "named"),
    [
        (1, (RAISED, KILLED), "rank 1 on {host} (process {process}) was killed by SIGKILL"),
        (0, (RAISED, KILLED), "rank 1 on {host} (process {process}) was killed by SIGKILL"),
        (1, (RAISED, RAISED), "rank 1 on {host} (process {process}) failed"),
    ],
)
def test_the_launcher_names_no_rank_that_followed(forked_python, tmp_path, first, ends, named):
    """Both end between two of torchrun's looks, whose interval is long here."""
    (tmp_path / "rank.py").write_text(FOLLOWED)
    options = ["--standalone", "--nproc_per_node", "2", "--monitor-interval", "2", "--no-python"]
    rank = [sys.executable, "-SE", f"{tmp_path}/rank.py", str(tmp_path), str(first), *ends]
    command = [forked_python.command, "-m", "llava.train.launch", *options, *rank]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=100, check=False)
    named = named.format(host=platform.node(), process=(tmp_path / "process1").read_text())
    assert done.stderr == f"error: {named}; all processes of this host were stopped\n"
    assert done.returncode == (137 if KILLED in ends else 3)


@pytest.mark.parametrize(
    ("ends", "rank"),
    [
        ({0: (1, 5.0), 1: (-9, 5.2)}, 1),
        ({0: (1, 5.2), 1: (-9, 5.0)}, 1),
        ({1: (-9, 5.0), 0: (1, 5.0)}, 1),
        ({0: (1, 5.2), 1: (1, 5.0)}, 1),
        ({1: (1, 5.0), 0: (-15, 5.0)}, 1),  # seen at once: torchrun's order
        ({0: (-15, 5.2), 1: (2, 5.0)}, 1),
        ({0: (-6, 5.1), 1: (1, 5.0)}, 1),  # what NCCL does when another rank has ended
        ({0: (-9, 35.0), 1: (1, 5.0)}, 1),  # torchrun's own
    ],
)
def test_the_cause_of_several_ends(ends, rank):
    """ends: {rank: (exit status, when)}."""
    failures = {number: ProcessFailure(number, 100 + number, status, "") for number, (status, _) in ends.items()}
    assert launch.cause(failures, {100 + number: when for number, (_, when) in ends.items()}) == rank
