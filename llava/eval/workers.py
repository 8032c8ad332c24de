"""The processes that run tasks: they end as `llava eval` ends, and only one command writes a task's files.

llava eval ── locks RUN/.TASK.lock ── a worker for each task, in a session of its own, which inherits the locks
"""

import errno
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType

from llava.errors import LlavaError
from llava.train.loop.stop import die_with_parent

STDERR = 2  # file descriptor
STOPS = (signal.SIGINT, signal.SIGTERM)
GRACE = 10.0  # seconds that a worker has to end by itself; torchrun takes some to end its ranks
PATIENCE, LOOK = 3.0, 0.1  # seconds: for what was just killed to be gone, and between looks
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)  # of file systems that have none


class StopError(BaseException):
    """SIGINT or SIGTERM, `number`, came. No Exception, so that nothing on its way takes it for an error."""

    def __init__(self, number: int):
        super().__init__(number)
        self.number = number


@contextmanager
def stoppable() -> Iterator[None]:
    """A context in which the first SIGINT or SIGTERM raises StopError; the second ends this process at once."""

    def stop(number: int, _: FrameType | None) -> None:
        for other in STOPS:
            signal.signal(other, signal.SIG_DFL)
        raise StopError(number)

    replaced = {number: signal.signal(number, stop) for number in STOPS}
    try:
        yield
    finally:
        for number, handler in replaced.items():
            signal.signal(number, handler)


def run_worker(command: Sequence[str], environment: Mapping[str, str], locks: Sequence[int] = ()) -> int:
    """Runs the command to its end and returns its status, negative for a signal. It ends when this process ends.

    locks: open files of `sole_writer`, which the worker inherits. What it prints goes to stderr: some tasks print to
    stdout, which is the table's. A terminal's Ctrl-C reaches this process alone, and through it the worker.
    """
    worker = subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=STDERR,
        start_new_session=True,
        pass_fds=locks,
        preexec_fn=partial(die_with_parent, os.getpid()),  # this process has no other threads
    )
    try:
        return worker.wait()
    except BaseException:
        worker.terminate()
        try:
            worker.wait(GRACE)
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.wait()
        raise


@contextmanager
def sole_writer(out: Path, tasks: Sequence[str]) -> Iterator[list[int]]:
    """Locks the tasks' part of the run folder against other commands; yields the open lock files.

    A lock holds until this process and all that inherited it have ended, whatever ended them. Raises LlavaError when
    another command is at work on one of the tasks, and when the folder cannot be written.
    """
    files: dict[Path, int] = {}
    try:
        try:
            out.mkdir(parents=True, exist_ok=True)
            for task in tasks:
                file = out / f".{task}.lock"
                files[file] = _locked(file, task)
        except OSError as error:
            raise LlavaError(f"{out}: cannot be written: {error.strerror}") from error
        yield list(files.values())
    finally:
        for file, descriptor in files.items():
            file.unlink(missing_ok=True)
            os.close(descriptor)


def _locked(file: Path, task: str) -> int:
    """The open file, which this process has locked and which holds its process id."""
    deadline = time.monotonic() + PATIENCE
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_still(file, descriptor):
                os.truncate(descriptor, 0)
                os.write(descriptor, f"{os.getpid()}\n".encode())
                return descriptor
        except BlockingIOError:
            if time.monotonic() > deadline:
                holder = os.read(descriptor, 20).decode().strip() or "unknown"
                os.close(descriptor)
                raise LlavaError(
                    f"{file.parent}: another command (process {holder}) is at work on {task}; wait for its end, stop "
                    "it, or give this one a folder of its own"
                ) from None
            time.sleep(LOOK)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                os.close(descriptor)
                raise
            print(f"note: {file.parent} is on a file system without locks; start no second command", file=sys.stderr)
            return descriptor
        os.close(descriptor)


def _is_still(file: Path, descriptor: int) -> bool:
    """Whether the open file is the one of that name: the command before may have removed it."""
    try:
        return os.path.samestat(os.fstat(descriptor), file.stat())
    except FileNotFoundError:
        return False
