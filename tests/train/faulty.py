"""Runs a stage in processes of its own, forked from the test's so that nothing is imported again, and lets it fail."""

import contextlib
import errno
import importlib
import os
import resource
import shutil
import signal
import sys
import time
import traceback
import warnings
from pathlib import Path

import torch
from transformers import TrainerCallback

from llava.errors import LlavaError
from llava.train import stage
from llava.train.recipe.checks import check_recipe
from tests.ports import free_port

# What DeepSpeed's engine imports late, 5 s a process.
SLOW_IMPORTS = ("torch._dynamo", "torch._inductor.compile_fx", "deepspeed.runtime.zero.muon.muon_optimizer")


def start(recipe, log: Path, fault=None, ranks: int = 1) -> list[int]:
    """Starts the stage; returns the ranks' process ids. fault: called in the last rank before it trains."""
    if recipe.run.deepspeed is not None:
        with warnings.catch_warnings(action="ignore"):
            for module in SLOW_IMPORTS:
                importlib.import_module(module)
    port = free_port()
    sys.stdout.flush()
    processes = []
    for rank in range(ranks):
        process = os.fork()
        if process == 0:
            if ranks > 1 or recipe.run.deepspeed is not None:
                os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}
                os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_WORLD_SIZE": str(ranks)}
            _child(recipe, log, fault if rank == ranks - 1 else None, ranks)
        processes.append(process)
    return processes


def wait(processes: list[int], timeout: float = 120) -> list[int]:
    """The exit statuses, -N after signal N; processes that take too long are killed."""
    end, statuses = time.monotonic() + timeout, {}
    while len(statuses) < len(processes):
        for process in set(processes) - set(statuses):
            done, status = os.waitpid(process, os.WNOHANG)
            if done:
                statuses[process] = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > end:
                os.kill(process, signal.SIGKILL)
        time.sleep(0.02)
    return [statuses[process] for process in processes]


def ended(process: int) -> bool:
    """Whether it has exited; it can still be waited for."""
    return os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def run(recipe, log: Path, fault=None, **options) -> list[int]:
    """Runs the stage to its end, or the fault's."""
    return wait(start(recipe, log, fault, **options))


def _child(recipe, log: Path, fault, ranks: int) -> None:
    status = 1
    try:
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(out, 1)
        os.dup2(out, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        check_recipe(recipe, ranks, dry_run=False)
        if fault is not None:
            fault()
        stage.run_stage(recipe)
        status = 0
    except LlavaError as error:
        print(f"error: {error}", file=sys.stderr)
        status = 2
    except SystemExit as stopped:
        status = stopped.code
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


class AfterStep(TrainerCallback):
    def __init__(self, step: int, act):
        self.step, self.act = step, act

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            self.act()


def with_callbacks(*callbacks):
    """A fault that adds callbacks to the trainer."""

    def fault():
        prepare = stage.prepare

        def prepared(*args):
            made = prepare(*args)
            for callback in callbacks:
                made.trainer.add_callback(callback)
            return made

        stage.prepare = prepared

    return fault


def after_step(step: int, act):
    return with_callbacks(AfterStep(step, act))


def signal_after_step(step: int, number: int):
    """A signal to itself, before the checkpoint of that step."""
    return after_step(step, lambda: os.kill(os.getpid(), number))


def kill_self(*_) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def at_event(event: str, fragment: str, act, count: int = 1):
    """Acts when python raises the `count`-th audit event of this name about a path that contains `fragment`."""

    def fault():
        seen = []

        def hook(name, arguments):
            if name == event and any(fragment in str(argument) for argument in arguments):
                seen.append(name)
                if len(seen) == count:
                    act()

        sys.addaudithook(hook)

    return fault


def killed_at_event(event: str, fragment: str, count: int = 1):
    return at_event(event, fragment, kill_self, count)


def disk_full_at(event: str, fragment: str, count: int = 1):
    def full():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    return at_event(event, fragment, full, count)


def in_torch_save(file: str, act):
    """Half of `file` is written by torch.save, then `act` is called with its path."""

    def fault():
        save = torch.save

        def half(value, path, **options):
            save(value, path, **options)
            if file in str(path):
                os.truncate(path, os.path.getsize(path) // 2)
                act(path)

        torch.save = half

    return fault


def killed_in_half_of(file: str):
    return in_torch_save(file, kill_self)


def torch_save_fails(file: str):
    """As torch 2.13 does when the disk is full."""

    def full(_):
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0")

    return in_torch_save(file, full)


def disk_full_between(first: int, last: int, size: int):
    """After step `first` no file may become larger than `size` bytes, until step `last` is over."""
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]

    def limit(soft: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return with_callbacks(AfterStep(first, lambda: limit(size)), AfterStep(last, lambda: limit(hard)))


def little_room() -> None:
    """The disk says that it has a byte left while the stage trains, and room enough for the stage's own checkpoint."""
    real = shutil.disk_usage

    def usage(path):
        return real(path)._replace(free=1) if "writing" in str(path) else real(path)

    shutil.disk_usage = usage


def kill_all(processes: list[int]) -> None:
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
