"""Ranks wait at the store where they found each other for what takes one of them long: a start, a checkpoint.

A start may take minutes on one rank and nothing on the others: an index is made, images are looked at, states are
joined; and one rank alone writes the model to a disk that may be slow. `run.startup_timeout` is the patience for that;
collectives have `run.collective_timeout`, in which a rank that trains must answer, and so begin when all are there.
"""

import os
import time
from contextlib import suppress
from datetime import timedelta
from itertools import count

from torch import distributed
from torch.distributed.rendezvous import rendezvous

from llava.errors import LlavaError

PARTING = 20  # seconds for all ranks to know that one has failed
FIRST_LOOK, LOOK = 0.001, 0.1  # seconds to the first look at the store, and the most between later ones
# Where rank 0 is the store's host its process group uses the same one: ended in between, it would lose early ranks.
KEPT: list[distributed.Store] = []
_NUMBERS = count()


def run_store(timeout: timedelta) -> distributed.Store:
    """The store through which the processes of this run, started by torchrun or as by it, find each other.

    Raises:
        DistError: when the others are not found within `timeout`.
    """
    if not KEPT:
        KEPT.append(next(rendezvous("env://", timeout=timeout))[0])
    return KEPT[0]


def meet(seconds: int) -> None:
    """Returns on every rank when all have come here."""
    Meeting(seconds).come()


def part() -> None:
    """Before the ranks end for what all know: rank 0, the first to end, may be the store's host."""
    with suppress(LlavaError, distributed.DistError):
        Meeting(PARTING).come()


class Meeting:
    """One wait of the ranks for each other; every rank makes as many, in the same order. Of one process it is none.

    Args:
        seconds: how long a rank waits for another.
    """

    def __init__(self, seconds: int):
        self.seconds, self.name = seconds, str(next(_NUMBERS))
        self.rank, self.world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        self.store = None
        if "RANK" in os.environ and self.world_size > 1:
            prefix = f"start/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}/{self.name}"
            try:
                self.store = distributed.PrefixStore(prefix, run_store(timedelta(seconds=seconds)))
            except distributed.DistError as error:
                raise self._lost(error) from None

    def tell(self, key: str) -> None:
        """Says that something has happened."""
        if self.store is not None:
            self.store.set(key, "")

    def wait(self, *keys: str) -> None:
        """Returns when all of this has happened.

        Raises:
            LlavaError: when it has not within `seconds`, or the store is gone.
        """
        end, pause = time.monotonic() + self.seconds, FIRST_LOOK
        try:
            while self.store is not None and not self.store.check(list(keys)):
                if time.monotonic() > end:
                    reason = f"for {self.seconds} s, run.startup_timeout, in vain"
                    raise LlavaError(f"rank {self.rank} waited for other ranks {reason}")
                time.sleep(pause)  # in which signals are heard
                pause = min(2 * pause, LOOK)
        except distributed.DistError as error:
            raise self._lost(error) from None

    def _lost(self, error: distributed.DistError) -> LlavaError:
        reason = str(error).partition("\n")[0]
        return LlavaError(f"rank {self.rank} does not reach the other ranks: {reason}")

    def come(self, what: str = "") -> list[str]:
        """Waits until all ranks have come; returns what each of them said with it."""
        if self.store is None:
            return [what]
        keys = [f"rank {number}" for number in range(self.world_size)]
        self.store.set(keys[self.rank], what)
        self.wait(*keys)
        return [self.store.get(key).decode() for key in keys]
