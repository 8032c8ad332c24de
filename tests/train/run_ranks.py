"""Runs of one or several ranks as forks of a process that has imported everything once, which takes longest.

multiprocessing's fork server is that process: torchrun would import torch, transformers and DeepSpeed in every rank.
"""

import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from multiprocessing import forkserver
from pathlib import Path
from unittest import mock

from tests.ports import free_port

PRELOADED = [
    "torch._dynamo",
    "torch._inductor.compile_fx",
    "deepspeed.runtime.zero.muon.muon_optimizer",
    "tests.train.recorder",
]


def run_ranks(function: Callable, *arguments, processes: int | None, folder: Path, timeout: float) -> None:
    """Calls function(*arguments), importable by its name, on every rank, and waits for the end.

    processes: how many ranks, connected as by torchrun; None runs it once without that. folder: for the logs.
    Raises AssertionError with the end of the logs when a rank fails, or when `timeout` seconds have passed; no rank
    is left then.
    """
    logs = [folder / f"rank-{rank}.log" for rank in range(processes or 1)]
    port = free_port()
    context = fork_context()
    ranks = [
        context.Process(target=run_rank, args=(function, arguments, rank if processes else None, processes, port, log))
        for rank, log in enumerate(logs)
    ]
    end = time.monotonic() + timeout
    with ExitStack() as stack:
        for process in ranks:
            process.start()
            stack.callback(process.join)
            stack.callback(process.kill)
        while any(process.exitcode is None for process in ranks) and time.monotonic() < end:
            if any(process.exitcode for process in ranks):
                end = min(end, time.monotonic() + 5)  # the others have lost a peer, and may still say so
            time.sleep(0.02)
        ends = [process.exitcode for process in ranks]
    said = "\n".join(f"{log.name}:\n{log.read_text()[-4000:]}" for log in logs)
    assert ends == [0] * len(ranks), f"exit codes {ends} (None: no end within {timeout} s)\n{said}"


def fork_context():
    """The fork server's, started with what its forks inherit."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    inherited = {"OMP_NUM_THREADS": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    with mock.patch.dict(os.environ, inherited | {"PYTHONPATH": os.pathsep.join(sys.path)}):
        forkserver.ensure_running()
    return context


def run_rank(function, arguments, rank, processes, port, log) -> None:
    """Calls function(*arguments) as one of the ranks, with its outputs in `log`; as no rank where `rank` is None."""
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(output, stream)
    if rank is not None:
        os.environ |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(processes),
            "LOCAL_WORLD_SIZE": str(processes),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
    function(*arguments)
