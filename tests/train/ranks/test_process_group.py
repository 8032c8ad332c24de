"""What the first rank decides for all, and what all tell each other."""

import json
import os
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
from torch import distributed

from llava.errors import DataError, LlavaError
from llava.train.ranks.process_group import first_on_each_host, gathered, on_first_rank, rank, start_process_group
from llava.train.ranks.waiting import meet, run_store
from tests.ports import free_port
from tests.train.run_ranks import run_ranks

PATIENCE = 60


def fail():
    raise DataError(f"row {rank()} is bad")


def ask(out: Path) -> None:
    """One rank: writes whose values it was given, what all gave, and how a fault of the first rank ends it."""
    if "RANK" in os.environ:
        distributed.init_process_group("gloo", timeout=timedelta(seconds=PATIENCE))
    given, everything = on_first_rank(lambda: {"rank": rank()}, PATIENCE), gathered([rank()] * (rank() + 1))
    try:
        end = on_first_rank(fail, PATIENCE)
    except (DataError, SystemExit) as raised:
        end = f"{type(raised).__name__} {raised}"
    facts = [given, everything, end, distributed.is_initialized()]
    Path(out, f"{rank()}.json").write_text(json.dumps(facts))


@pytest.mark.parametrize("processes", [None, 3])
def test_the_first_rank_decides_and_alone_tells_a_fault(tmp_path, processes):
    run_ranks(ask, tmp_path, processes=processes, folder=tmp_path, timeout=120)
    everything = [0, 1, 1, 2, 2, 2] if processes else [0]
    ends = ["DataError row 0 is bad"] + ["SystemExit 2"] * ((processes or 1) - 1)
    facts = [json.loads((tmp_path / f"{number}.json").read_text()) for number in range(len(ends))]
    assert facts == [[{"rank": 0}, everything, end, False] for end in ends]


def test_deepspeed_knows_the_ranks_of_this_host_and_starts_no_process_to_count_them():
    import deepspeed

    environment = {name: value for name, value in os.environ.items() if name != "LOCAL_SIZE"}
    run = SimpleNamespace(deepspeed="zero3.json", collective_timeout=60)
    with (
        mock.patch.dict(os.environ, environment | {"RANK": "0", "LOCAL_WORLD_SIZE": "3"}, clear=True),
        mock.patch.object(deepspeed, "init_distributed"),
        mock.patch.object(subprocess, "Popen", side_effect=AssertionError),
    ):
        start_process_group(run)
        assert deepspeed.get_accelerator().device_count() == 3


def wait(out: Path) -> None:
    """One rank of a group whose collectives may take five seconds, while one rank alone takes longer."""
    meet(PATIENCE)
    distributed.init_process_group("gloo", timeout=timedelta(seconds=5))
    given = on_first_rank(lambda: time.sleep(7) or "slow", PATIENCE)
    made = first_on_each_host(lambda: make(out), PATIENCE)
    if rank() == 1:
        time.sleep(7)
    meet(PATIENCE)
    everything = gathered([given, made])
    try:
        end = first_on_each_host(fail, PATIENCE)
    except (DataError, SystemExit) as raised:
        end = f"{type(raised).__name__} {raised}"
    Path(out, f"{rank()}.json").write_text(json.dumps([everything, end]))


def make(out: Path) -> int:
    """Which rank has made a file that is not there yet."""
    if not (out / "made").exists():
        time.sleep(0.5)
        (out / "made").write_text(str(rank()))
    return int((out / "made").read_text())


def test_what_takes_one_rank_long_is_waited_for_longer_than_a_collective(tmp_path):
    run_ranks(wait, tmp_path, processes=3, folder=tmp_path, timeout=120)
    facts = [json.loads((tmp_path / f"{number}.json").read_text()) for number in range(3)]
    ends = ["DataError row 0 is bad", "SystemExit 2", "SystemExit 2"]
    assert facts == [[["slow", 0] * 3, end] for end in ends]


def give_up(out: Path) -> None:
    """One rank that waits for another, which does not come."""
    run_store(timedelta(seconds=PATIENCE))
    if rank() > 0:
        time.sleep(3)
        return
    try:
        meet(1)
    except LlavaError as raised:
        Path(out, "end").write_text(str(raised))


def test_a_rank_that_does_not_come_is_given_up(tmp_path):
    run_ranks(give_up, tmp_path, processes=2, folder=tmp_path, timeout=120)
    assert (tmp_path / "end").read_text() == "rank 0 waited for other ranks for 1 s, run.startup_timeout, in vain"


LEAVES = """
import os
from torch import distributed
from llava.train.ranks.process_group import leave_process_group
threads = lambda: len(os.listdir("/proc/self/task"))
before = threads()
distributed.init_process_group("gloo")
joined = threads()
leave_process_group()
assert not distributed.is_initialized()
assert before < joined == threads(), (before, joined, threads())
"""


def test_a_group_that_is_left_ends_with_the_process():
    """Ended before, with Python's lock held as by DDP's reducer, it can wait for a thread of its own that needs it."""
    alone = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    command = [sys.executable, "-c", LEAVES]
    done = subprocess.run(command, env=os.environ | alone, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
