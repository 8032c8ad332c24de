"""torchrun, for scripts/train/launch.sh: how a run failed is told in one line, without torchrun's own traceback.

Takes torchrun's arguments. Ranks that end with TOLD have said why; any other end names the rank that was first.
"""

import contextlib
import logging
import os
import platform
import select
import signal
import sys
import time
from threading import Thread

import psutil
from torch.distributed import DistError, run
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from llava.train.loop.stop import LAUNCHER

TOLD = (2, 128 + signal.SIGINT, 128 + signal.SIGTERM)
PATIENCE = 60  # seconds that a host whose ranks have ended well waits for the other hosts
LOOK = 0.5  # seconds between looks at the ranks


class Waits(Thread):
    """Ends this launcher where it waits for other hosts in vain.

    torchrun meets the other hosts before its ranks start and once they have ended, in C++, where it hears no signal;
    after the ranks it waits five minutes for a launcher that is gone. This thread ends the launcher soon after a signal
    and, once the ranks have ended, after PATIENCE seconds. A rank that failed leads to no such wait, so that this
    host's part is whole then.
    """

    def __init__(self):
        super().__init__(daemon=True)
        self.signals, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)

    def run(self) -> None:
        """Ends the launcher where torchrun would wait: on a signal that it misses, on hosts that are gone."""
        had_ranks, since = False, time.monotonic()
        while True:
            heard, _, _ = select.select([self.signals], [], [], LOOK)
            number = os.read(self.signals, 1)[0] if heard else 0
            if _ranks():
                had_ranks, since = True, time.monotonic()
            elif number:
                time.sleep(LOOK)  # where torchrun does hear it, it ends by itself
                os._exit(128 + number)
            elif had_ranks and time.monotonic() - since > PATIENCE:
                line = f"this host's processes have ended; the other hosts' launchers did not within {PATIENCE} s\n"
                os.write(2, line.encode())
                os._exit(0)


def _ranks() -> list[psutil.Process]:
    """The processes of this run on this host that have not ended."""
    ranks = []
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):  # it ended just now
            if child.status() != psutil.STATUS_ZOMBIE:
                ranks.append(child)
    return ranks


def main(argv: list[str]) -> int:
    """Runs the processes of this host to their end; returns the exit status of the first that failed, or 0."""
    logging.disable(logging.ERROR)  # the launcher's remarks; the ranks have their own
    arguments = run.parse_args(argv)
    Waits().start()
    os.environ[LAUNCHER] = str(os.getpid())
    try:
        run.run(arguments)
    except ChildFailedError as error:
        rank, failure = min(error.failures.items(), key=lambda item: item[1].timestamp)
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
    sys.exit(main(sys.argv[1:]))
