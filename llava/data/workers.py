"""Work on many rows, shared out to processes: results come in the order of the tasks, and few of them wait.

The processes are other programs than this one (`python -m llava.data.workers`), neither forked, which a process with
threads may not be, nor in need of a main module that can be imported. They end with the pipe to the one that started
them, however that one ends.
"""

import contextlib
import os
import pickle
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import starmap
from pathlib import Path
from queue import SimpleQueue
from typing import IO, Any, cast

import llava
from llava.errors import LlavaError

AHEAD = 4  # tasks a process that are under way or done and not asked for yet


def core_count() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Workers:
    """A context with as many processes as there are cores, started for the first work that is worth it."""

    def __init__(self, count: int | None = None):
        self.count = count or core_count()
        self.threads: ThreadPoolExecutor | None = None  # each waits for one process
        self.processes: list[subprocess.Popen] = []
        self.idle: SimpleQueue[subprocess.Popen] = SimpleQueue()

    def map(self, function: Callable, tasks: Iterable[tuple], alone: bool) -> Iterator:
        """function(*task) of each task, in their order. What it raises is raised.

        function: of a module. alone: the work is so little that this process does it itself. Raises LlavaError when a
        process dies.
        """
        if alone or self.count == 1:
            yield from starmap(function, tasks)
            return
        threads = self._start()
        pending: deque[Future] = deque()
        for task in tasks:
            pending.append(threads.submit(self._call, function, task))
            if len(pending) > AHEAD * self.count:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()

    def _start(self) -> ThreadPoolExecutor:
        if self.threads is not None:
            return self.threads
        self.threads = ThreadPoolExecutor(self.count)
        paths = [str(Path(llava.__file__).parent.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
        command = [sys.executable, "-m", "llava.data.workers"]
        for _ in range(self.count):
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
            self.processes.append(process)
            self.idle.put(process)
        return self.threads

    def _call(self, function: Callable, task: tuple) -> Any:
        process = self.idle.get()
        tasks, results = _pipes(process)
        try:
            pickle.dump((function, task), tasks)
            tasks.flush()
            result, error = pickle.load(results)
        except (EOFError, BrokenPipeError, pickle.UnpicklingError):
            raise LlavaError("a process that reads data died; was there memory enough for it?") from None
        finally:
            self.idle.put(process)
        if error is not None:
            raise error
        return result

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_: object) -> None:
        if self.threads is None:
            return
        self.threads.shutdown(cancel_futures=True)
        for process in self.processes:
            tasks, results = _pipes(process)
            with contextlib.suppress(BrokenPipeError):
                tasks.close()
            results.close()
            process.wait()
        self.threads, self.processes, self.idle = None, [], SimpleQueue()


def _pipes(process: subprocess.Popen) -> tuple[IO[bytes], IO[bytes]]:
    return cast(IO[bytes], process.stdin), cast(IO[bytes], process.stdout)


def main() -> None:
    """Does what comes through the standard input until that ends; what a function prints goes to the errors."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's Ctrl-C is for the process that waits
    results = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            function, task = pickle.load(sys.stdin.buffer)
            try:
                answer: tuple[Any, Exception | None] = (function(*task), None)
            except Exception as error:  # whatever it is, the process that waits raises it
                answer = (None, error)
            pickle.dump(answer, results)
            results.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
