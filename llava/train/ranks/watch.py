"""A rank that dies ends all: under NCCL the others would wait for it in a collective until that times out.

Two things tell of it, in the store through which the ranks found each other, where every rank looks while it works:

- The launcher of a host, launch.py, sees its ranks end, and has a folder in which each has a file until it leaves the
  run, see leave_process_group; of a rank that did not leave it tells all. A rank that Python ends tells it itself.
- Every rank says there again and again that it lives, and looks at the next one's word. That tells of a host without
  power or network, of a rank that is stopped, and of one killed where the launcher is another's.

A thread says it, which what holds Python's lock for long keeps from it: a gigabyte of JSON, half a minute. Reading and
writing weights, collectives and kernels do not hold it.
"""

import atexit
import os
import platform
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from itertools import count
from pathlib import Path
from threading import Event, Thread, current_thread

from torch import distributed

LOOK = 2  # seconds between looks at the store
GRACE = 20  # seconds from the end of a rank to that of the others, which may notice it, and tell, by themselves
# Seconds without a word after which a rank counts as dead: as many as leave a minute to the end of all. What holds
# Python's lock, or a network that drops out, should be over sooner: a run ended for nothing is worse than a wait.
SILENT = 45
ANSWER = timedelta(seconds=10)  # for the store to be reached
FAILED, LOST = "failed", "lost"  # keys of the store: what has ended; who is silent
LEFT = "left"  # the last word of a rank that needs no other
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
        store.set(FAILED, f"rank {rank} on {platform.node()} (process {process}) has ended")


@dataclass(frozen=True)
class End:
    """Why this rank must end, and for how many seconds it may still do so by itself."""

    why: str
    grace: float


class Stillness:
    """Whether something has stood still for SILENT seconds.

    Its looks are counted, so that time in which this process itself was stopped does not count.
    """

    def __init__(self) -> None:
        self.last: object = None
        self.looks = 0

    def look(self, value: object) -> bool:
        """One look, at least LOOK seconds after the one before; True when `value` has been the same for too long."""
        self.looks = self.looks + 1 if value == self.last else 0
        self.last = value
        return self.looks * LOOK >= SILENT


class Word(Thread):
    """Tells through the store that this rank lives, and asks there for the others.

    A store whose host has no power or network any more lets it wait for many minutes, and torch knows no limit for
    that; so Watch, another thread, looks at `answers`.

    end: why this rank must end, once that is known. answers: how often the store has answered.
    """

    def __init__(self, rank: int, world_size: int, left: Event) -> None:
        super().__init__(daemon=True)
        self.rank, self.world_size, self.left = rank, world_size, left
        self.store = ends_store(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
        self.next = (rank + 1) % world_size  # of any ranks that die one is the next of a living one
        self.stillness = Stillness()
        self.end: End | None = None
        self.answers = 0

    def run(self) -> None:
        """Tells and asks until this rank leaves or must end."""
        place = f"on {platform.node()} (process {os.getpid()})"
        for number in count():
            try:
                self.store.set(f"alive/{self.rank}", f"{number} {place}")
                self.end = self._end()
                self.answers += 1
            except distributed.DistNetworkError:
                self.end = End(f"{os.environ['MASTER_ADDR']}, through which the ranks meet, has ended", GRACE)
            except distributed.DistStoreError:
                pass  # it was slow, which may pass
            if self.end is not None:
                return
            if self.left.wait(LOOK):
                break
        with suppress(distributed.DistError):
            self.store.set(f"alive/{self.rank}", LEFT)

    def _end(self) -> End | None:
        for key, grace in ((FAILED, GRACE), (LOST, 0)):
            if self.store.check([key]):
                return End(self.store.get(key).decode(), grace)
        while self.next != self.rank and self.store.check([f"alive/{self.next}"]):
            word = self.store.get(f"alive/{self.next}").decode()
            if word != LEFT:
                if self.stillness.look((self.next, word)):
                    place = word.partition(" ")[2]
                    self.store.set(LOST, f"rank {self.next} {place} has given no sign of life for {SILENT} s")
                break
            self.next = (self.next + 1) % self.world_size
        return None


class Watch(Thread):
    """Ends this rank when another has failed, or when the store is gone with its host."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.rank = int(os.environ["RANK"])
        self.left = Event()
        self.word = Word(self.rank, int(os.environ["WORLD_SIZE"]), self.left)
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
            self.join()
            self.word.join(LOOK)  # it must not stand in torch's C++ when Python shuts down

    def run(self) -> None:
        """Looks at the store's answers until this rank leaves."""
        self.word.start()
        stillness = Stillness()
        while not self.left.wait(LOOK):
            end = self.word.end
            if stillness.look(self.word.answers) and end is None:
                address = os.environ["MASTER_ADDR"]
                end = End(f"{address}, through which the ranks meet, has not answered for {SILENT} s", 0)
            if end is not None and not self.left.wait(end.grace):
                self.leave()
                if int(os.environ.get("LOCAL_RANK", 0)) == 0:
                    # print() would wait for whoever holds the stream
                    os.write(2, f"\nerror: {end.why}; the processes of {platform.node()} end with it\n".encode())
                os._exit(2)

    def _tell(self) -> None:
        if not self.left.is_set():
            self.leave()
            if not self.word.is_alive():  # else the store does not answer
                with suppress(distributed.DistError):
                    tell_end(self.word.store, self.rank, os.getpid())


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
