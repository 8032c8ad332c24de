"""Ctrl-C and SIGTERM while training: note it, save at the next step, exit. And no rank outlives its launcher."""

import ctypes
import multiprocessing
import os
import signal
import sys
from threading import Thread
from types import FrameType

PR_SET_PDEATHSIG = 1  # linux/prctl.h
LAUNCHER = "LLAVA_LAUNCHER"  # the variable in which llava/train/launch.py tells its ranks its process id
LOOK = 2  # seconds between a data loader's worker's looks at whether its rank still runs


class StopRequest:
    """A context in which SIGINT and SIGTERM are noted instead of ending the process.

    signal: the signal's number once one came, else 0. A second Ctrl-C ends the process at once, inside a collective
    too; a second SIGTERM does not, for a scheduler may send it to torchrun and to the ranks.
    """

    def __init__(self) -> None:
        self.signal = 0

    def __enter__(self) -> "StopRequest":
        self.process = os.getpid()
        self.replaced = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.replaced.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        if os.getpid() != self.process:
            return  # a process forked from this one, such as a data loader's worker
        self.signal = number
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        if int(os.environ.get("RANK", 0)) == 0:
            name = signal.Signals(number).name
            # print() is not safe in a handler
            os.write(2, f"\n{name}: saves a checkpoint after this step and exits; Ctrl-C stops at once\n".encode())


def heed_parent_alone() -> None:
    """For a data loader's worker: torchrun, terminals and schedulers signal it too, and its parent needs it still.

    It ends with its parent, also where that ended before the worker came here: torch's own look takes whoever is the
    parent by then for the one that started it, and would wait for ever.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    Thread(target=_end_with, args=(multiprocessing.parent_process().pid,), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        heard = signal.sigtimedwait({signal.SIGTERM}, LOOK)
        if heard is not None and heard.si_pid == parent:
            break
    os._exit(0)


def die_with_launcher() -> None:
    """On Linux, ends this rank when torchrun ends: an orphan would train on, beside the run that is started next."""
    if "RANK" in os.environ:
        die_with_parent(int(os.environ.get(LAUNCHER, os.getppid())))


def die_with_parent(parent: int) -> None:
    """On Linux, ends this process when `parent`, which started it, ends; at once where it has ended already."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os.write(2, f"error: process {parent}, which started this one, has ended\n".encode())
        os._exit(1)
