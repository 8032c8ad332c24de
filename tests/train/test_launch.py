"""Which rank the launcher names when several have ended: the one that the others followed."""

import platform
import subprocess
import sys

import pytest
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from llava.train import launch

# The launcher leaves a file seen-PROCESS of each rank that it has seen, and ended-PROCESS when it has seen it to end;
# torchrun looks at them when both have ended.
TELLING = """
import sys, time
from pathlib import Path
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from llava.train import launch
folder, look, monitor = Path(sys.argv[1]), launch.Waits.look, LocalElasticAgent._monitor_workers

def told(self):
    runs = look(self)
    for name, processes in {"seen": self.places, "ended": self.ends}.items():
        for process in processes:
            Path(folder, f"{name}-{process}").touch()
    return runs

def monitored(*arguments):
    while len(list(folder.glob("ended-*"))) < 2:
        time.sleep(0.01)
    return monitor(*arguments)

launch.Waits.look, LocalElasticAgent._monitor_workers = told, monitored
launch.end_with(lambda: launch.main(sys.argv[2:]))
"""
FOLLOWED = """
import os, pathlib, signal, sys, time
rank, folder, first = int(os.environ["RANK"]), sys.argv[1], int(sys.argv[2])

def wait_for(name):
    while not pathlib.Path(folder, name).exists():
        time.sleep(0.01)

(file := pathlib.Path(folder, f"new{rank}")).write_text(str(os.getpid()))
file.rename(f"{folder}/process{rank}")
wait_for(f"process{1 - rank}")
other = pathlib.Path(folder, f"process{1 - rank}").read_text()
wait_for(f"seen-{os.getpid()}")
wait_for(f"seen-{other}")
if rank != first:
    wait_for(f"ended-{other}")
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
    """Both end between two of torchrun's looks."""
    (tmp_path / "rank.py").write_text(FOLLOWED)
    options = ["--standalone", "--nproc_per_node", "2", "--no-python"]
    rank = [sys.executable, "-SE", f"{tmp_path}/rank.py", str(tmp_path), str(first), *ends]
    command = [forked_python.command, "-c", TELLING, str(tmp_path), *options, *rank]
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
