"""torchrun, for scripts/train/launch.sh: how a run failed is told in one line, without torchrun's own traceback.

Takes torchrun's arguments. Ranks that end with TOLD have said why; any other end names the rank that the others
followed, see `cause`.
"""

import contextlib
import logging
import os
import platform
import select
import shutil
import signal
import sys
import time
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock, Thread
from typing import NoReturn

import psutil
from torch.distributed import DistError, run
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from llava.train.loop.stop import LAUNCHER
from llava.train.rank import end_with
from llava.train.ranks.watch import WORKING, ends_store, tell_end

TOLD = (2, 128 + signal.SIGINT, 128 + signal.SIGTERM)
PATIENCE = 50  # seconds that a host whose ranks have ended well waits for the other hosts: within a minute it ends
LOOK = 0.5  # seconds between looks at the ranks, of which the end of one is another
DYING = 10  # seconds that a killed process may take to end; torchrun kills, too, but 30 s after its SIGTERM


class Waits(Thread):
    """Tells the other hosts of a rank that failed, and ends this launcher where it waits for them in vain.

    torchrun meets the other hosts before its ranks start and once they have ended, in C++, where it hears no signal;
    after the ranks it waits five minutes for a launcher that is gone. This thread ends the launcher soon after a signal
    and, once the ranks have ended, after PATIENCE seconds. A rank that failed leads to no such wait, so that this
    host's part is whole then; it is told to the other ranks, see llava/train/ranks/watch.py.
    """

    def __init__(self, working: Path):
        super().__init__(daemon=True)
        self.working = working  # the folder of those ranks' files that have not left the run, named after their process
        self.places: dict[int, dict[str, str]] = {}  # {process: its environment} of all ranks
        self.began = time.monotonic()
        self.ends: dict[int, float] = {}  # {process: when it was seen to have ended}
        self.lock = Lock()
        self.signals, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)  # what has a handler is written to the pipe
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)

    def run(self) -> None:
        """Ends the launcher where torchrun would wait: on a signal that it misses, on hosts that are gone."""
        had_ranks, since = False, time.monotonic()
        while True:
            heard, _, _ = select.select([self.signals], [], [], LOOK)
            number = os.read(self.signals, 1)[0] if heard else 0
            if self.look():
                had_ranks, since = True, time.monotonic()
            elif number not in (0, signal.SIGCHLD):
                time.sleep(LOOK)  # where torchrun does hear it, it ends by itself
                self.end(128 + number)
            elif had_ranks and time.monotonic() - since > PATIENCE:
                line = f"this host's processes have ended; the other hosts' launchers did not within {PATIENCE} s\n"
                os.write(2, line.encode())
                self.end(0)

    def end(self, status: int) -> NoReturn:
        """Ends the launcher at once."""
        shutil.rmtree(self.working, ignore_errors=True)
        os._exit(status)

    def look(self) -> bool:
        """Tells the run of ranks that have ended since the last look, and had not left; returns whether any runs."""
        with self.lock:
            ended = [process for process in self.places if process not in self.ends and not _runs(process)]
            self.ends |= dict.fromkeys(ended, time.monotonic())
            for process in ended:
                if (self.working / str(process)).exists():
                    _tell_end(process, self.places[process])
            ranks = [child for child in psutil.Process().children() if _runs(child.pid)]
            new = [rank for rank in ranks if "RANK" not in self.places.get(rank.pid, {})]  # or it had not begun yet
            self.places |= {rank.pid: _environment(rank) for rank in new}
        return bool(ranks)

    def cause(self, failures: Mapping[int, ProcessFailure]) -> int:
        """The rank that the others followed, see `cause`; the run is told of it though it may have left."""
        self.look()
        rank = cause(failures, {failure.pid: self.ends.get(failure.pid, self.began) for failure in failures.values()})
        if failures[rank].exitcode not in TOLD:
            _tell_end(failures[rank].pid, self.places.get(failures[rank].pid, {}))
        return rank


def cause(failures: Mapping[int, ProcessFailure], ends: Mapping[int, float]) -> int:
    """The rank that the others followed: one that was killed, else the first that was seen to have ended.

    The connections of a process that is killed are closed, by which the others notice, before its end is seen.

    Args:
        failures: of each rank that failed, in the order in which torchrun saw them.
        ends: when each process was seen to have ended, in seconds.
    """
    first = min(ends.values())

    def order(rank: int) -> tuple[bool, float]:
        failure = failures[rank]
        killed = failure.exitcode == -signal.SIGKILL and ends[failure.pid] < first + DYING
        return not killed, ends[failure.pid]

    return min(failures, key=order)


def _runs(process: int) -> bool:
    """Whether it is a child of this process that has not ended."""
    with contextlib.suppress(psutil.NoSuchProcess):
        child = psutil.Process(process)
        return child.ppid() == os.getpid() and child.status() != psutil.STATUS_ZOMBIE
    return False


def _environment(rank: psutil.Process) -> dict[str, str]:
    with contextlib.suppress(psutil.Error):  # it ended just now
        return rank.environ()
    return {}


def _tell_end(process: int, environment: dict[str, str]) -> None:
    """Tells the run that a rank has ended, see tell_end. environment: its own."""
    with contextlib.suppress(DistError, KeyError):  # the run is over, or the process was no rank
        store = ends_store(environment["MASTER_ADDR"], int(environment["MASTER_PORT"]))
        tell_end(store, int(environment["RANK"]), process)


def main(argv: list[str]) -> int:
    """Runs this host's processes to their end; returns the exit status of the one that the others followed, or 0."""
    logging.disable(logging.ERROR)  # the launcher's remarks; the ranks have their own
    arguments = run.parse_args(argv)
    with TemporaryDirectory(prefix="llava-ranks-") as folder:
        waits = Waits(Path(folder))
        waits.start()
        os.environ |= {LAUNCHER: str(os.getpid()), WORKING: folder}
        return _run(arguments, waits)


def _run(arguments: Namespace, waits: Waits) -> int:
    try:
        run.run(arguments)
    except ChildFailedError as error:
        rank = waits.cause(error.failures)
        failure = error.failures[rank]
        killed = failure.exitcode < 0
        if failure.exitcode not in TOLD:
            how = f"was killed by {signal.Signals(-failure.exitcode).name}" if killed else "failed"
            place = f"rank {rank} on {platform.node()} (process {failure.pid})"
            print(f"error: {place} {how}; all processes of this host were stopped", file=sys.stderr)
        return 128 - failure.exitcode if killed else failure.exitcode
    except SignalException as stopped:
        return 128 + stopped.sigval
    except DistError as error:
        reason = str(error).partition("\n")[0]
        place = f"{arguments.master_addr}:{arguments.master_port}"
        print(f"error: the {arguments.nnodes} hosts did not meet at {place}: {reason}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    end_with(lambda: main(sys.argv[1:]))  # Waits may stand in torch's C++
