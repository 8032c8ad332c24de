"""Jobs side by side, each in a process of its own that ends with this one."""

import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from llava.bench.jobs import LOG, Bench, Job
from llava.train.loop.stop import die_with_parent

LOOK = 0.05  # seconds between looks at the processes
REFUSED = 2  # the status of a job whose input cannot be used
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


@dataclass(frozen=True)
class Ended:
    """A job that has ended.

    reason: why it has no result, None where it has one. refused: what it was to do cannot be, which is no failure.
    """

    job: Job
    reason: str | None = None
    refused: bool = False


def run_jobs(bench: Bench, jobs: Sequence[Job], at_once: int) -> Iterator[Ended]:
    """Runs the jobs that are not done; yields each when it has ended.

    at_once: how many side by side. They are killed where the caller ends before them: a job that is not done is done
    again, from its start.
    """
    waiting = deque(job for job in jobs if bench.result(job) is None)
    running: list[tuple[Job, subprocess.Popen]] = []
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                bench.write_task(waiting[0])
                running.append((waiting[0], _start(bench.folder(waiting.popleft()))))
            ended = [(job, process) for job, process in running if process.poll() is not None]
            running = [pair for pair in running if pair not in ended]
            for job, process in ended:
                yield _ended(job, bench.folder(job) / LOG, process.returncode)
            time.sleep(LOOK)
    finally:
        for _, process in running:
            process.kill()
            process.wait()


def _start(folder: Path) -> subprocess.Popen:
    with (folder / LOG).open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "llava.bench.work", str(folder)],
            env=os.environ | ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a terminal's Ctrl-C reaches the bench alone
            preexec_fn=partial(die_with_parent, os.getpid()),  # this process has no other threads
        )


def _ended(job: Job, log: Path, status: int) -> Ended:
    """A failed job says why in the last line of its log."""
    if status == 0:
        return Ended(job)
    if status < 0:
        return Ended(job, f"was killed by signal {-status}, see {log}")
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    if status == REFUSED and lines:
        return Ended(job, lines[-1].removeprefix("error: "), refused=True)
    return Ended(job, f"{lines[-1] if lines else 'it said nothing'} (status {status}, see {log})")
