"""A rank that dies ends all: under NCCL the others would wait for it in a collective until that times out.

The launcher of a host, launch.py, sees its ranks end, and has a folder in which each has a file until it leaves the
run, see leave_process_group. Of a rank that did not leave it tells all, in the store through which they found each
other; there every rank looks while it works. A rank that Python ends tells it itself, whatever launched it.
"""

import atexit
import os
import platform
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from threading import Event, Thread, current_thread

from torch import distributed

LOOK = 2  # seconds between looks at the store
GRACE = 20  # seconds from the end of a rank to that of the others, which may notice it, and tell, by themselves
ANSWER = timedelta(seconds=10)  # for the store to be reached
FAILED = "failed"  # key of the store
WORKING = "LLAVA_WORKING"  # variable that names the launcher's folder


def ends_store(address: str, port: int) -> distributed.Store:
    """Where the ranks' ends are told: at the store through which the processes of a run find each other.

    Raises:
        DistError: when it cannot be reached.
    """
    store = distributed.TCPStore(address, port, is_master=False, wait_for_workers=False, timeout=ANSWER)
    return distributed.PrefixStore("ends", store)


def tell_end(store: distributed.Store, rank: int, process: int) -> None:
    """Says that a rank of this host has ended that had not left the run, unless that is known. Raises DistError."""
    if not store.check([FAILED]):
        store.set(FAILED, f"rank {rank} on {platform.node()} (process {process})")


class Watch(Thread):
    """Ends this rank when another has failed, or when the store is gone with its host."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.rank = int(os.environ["RANK"])
        self.store = ends_store(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
        self.left = Event()
        self.file = Path(os.environ[WORKING], str(os.getpid())) if WORKING in os.environ else None
        if self.file is not None:
            self.file.touch()
        atexit.register(self._tell)

    def leave(self) -> None:
        """From here on this rank needs no other, and no other needs it."""
        self.left.set()
        if self.file is not None:
            self.file.unlink(missing_ok=True)
        if self.is_alive() and current_thread() is not self:
            self.join()  # it must not stand in torch's C++ when Python shuts down

    def run(self) -> None:
        """Looks at the store until this rank leaves."""
        while not self.left.wait(LOOK):
            try:
                failed = self.store.get(FAILED).decode() if self.store.check([FAILED]) else None
            except distributed.DistError:
                failed = f"{os.environ['MASTER_ADDR']}, through which the ranks meet,"
            if failed is not None and not self.left.wait(GRACE):
                self.leave()
                if int(os.environ.get("LOCAL_RANK", 0)) == 0:
                    # print() would wait for whoever holds the stream
                    os.write(2, f"\nerror: {failed} has ended; so do the processes of {platform.node()}\n".encode())
                os._exit(2)

    def _tell(self) -> None:
        if not self.left.is_set():
            self.leave()
            with suppress(distributed.DistError):
                tell_end(self.store, self.rank, os.getpid())


_WATCHES: list[Watch] = []


def start_watch() -> None:
    """From here on the end of another rank is this one's, too, until it leaves. Of one process it is nothing."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        _WATCHES.append(Watch())
        _WATCHES[-1].start()


def end_watch() -> None:
    """This rank leaves the run."""
    while _WATCHES:
        _WATCHES.pop().leave()
