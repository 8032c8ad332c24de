"""Processes that a test starts and leaves behind: whoever started them, they descend from the one that tests."""

import ctypes
import sys
from multiprocessing import forkserver, resource_tracker

import psutil

PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
SERVERS: set[int] = set()  # ids of processes that serve several files of tests


def adopt() -> None:
    """On Linux, descendants whose parent ends become this process's children, not the first process's."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)


def end_leftovers(patience: float = 30) -> list[str]:
    """Kills the processes below this one that have not ended within `patience` seconds; returns what they are.

    A fork has the command line of what it was forked from; it may have a name of its own, as pt_data_worker.
    """
    servers = {*SERVERS, forkserver._forkserver._forkserver_pid, resource_tracker._resource_tracker._pid}
    started = [process for process in psutil.Process().children(recursive=True) if process.pid not in servers]
    _, left = psutil.wait_procs(started, patience)
    lines = []
    for process in left:
        try:
            lines.append(f"process {process.pid}, {process.name()}: {' '.join(process.cmdline())}")
            process.kill()
        except psutil.NoSuchProcess:
            continue
    return lines
