"""A data loader's worker ends with its rank, whatever that ended in the midst of."""

import multiprocessing
import os
import subprocess
import time

import psutil
import pytest

from llava.train.loop import stop

FORK = multiprocessing.get_context("fork")


@pytest.fixture
def end_of_rank(monkeypatch):
    """A function: `early` to the process of a worker whose rank is killed before, or after, it heeds its parent."""
    monkeypatch.setattr(stop, "LOOK", 0.1)

    def worker(early: bool, sender) -> None:
        rank = os.getppid()
        sender.send(os.getpid())
        while early and os.getppid() == rank:
            time.sleep(0.01)
        stop.heed_parent_alone()
        sender.send("heeds")
        time.sleep(60)

    def rank(early: bool, sender) -> None:
        FORK.Process(target=worker, args=(early, sender)).start()
        time.sleep(60)

    def start(early: bool) -> psutil.Process:
        receiver, sender = FORK.Pipe(duplex=False)
        started = FORK.Process(target=rank, args=(early, sender))
        started.start()
        found = psutil.Process(receiver.recv())
        if not early:
            assert receiver.recv() == "heeds"
        started.kill()
        started.join()
        return found

    return start


@pytest.mark.parametrize("early", [True, False])
def test_a_worker_ends_with_its_rank(end_of_rank, early):
    end_of_rank(early).wait(60)


def test_a_worker_heeds_its_parents_sigterm_alone():
    def worker(sender) -> None:
        stop.heed_parent_alone()
        sender.send("heeds")
        time.sleep(60)

    receiver, sender = FORK.Pipe(duplex=False)
    started = FORK.Process(target=worker, args=(sender,))
    started.start()
    assert receiver.recv() == "heeds"
    for name in ("TERM", "INT"):
        subprocess.run(["kill", f"-{name}", str(started.pid)], check=True)
    started.join(0.5)
    assert started.is_alive()
    started.terminate()
    started.join(60)
    assert started.exitcode == 0
