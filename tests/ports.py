"""Ports for what tests start in processes of its own, which bind them a moment after they were chosen.

The system gives those above to whoever asks for any, and would give one away meanwhile; so they are taken from below,
one after the other, and each of the processes that test at once has its own.
"""

import os
import random
import socket
from itertools import cycle

FIRST, EACH, WORKERS = 21_000, 1_000, 10  # ports of a worker, and workers: the last one ends below 32,768
_WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % WORKERS
_BEGIN = random.SystemRandom().randrange(EACH)  # another run of the tests may be under way
_NUMBERS = cycle(FIRST + EACH * _WORKER + (_BEGIN + number) % EACH for number in range(EACH))


def free_port() -> int:
    """A port that nobody listens at, another each time."""
    for port in _NUMBERS:
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
            return port
    raise AssertionError("the numbers never end")
