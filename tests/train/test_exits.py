"""A stage of two processes that trained to its end is told as finished, launch after launch, on a busy machine.

`make test-exits` launches it many times under every strategy, and on two hosts; the suite does so once, under DDP.
"""

import multiprocessing
import os
import subprocess
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tests.forked_python import ForkedPython
from tests.train.hosts import run_on_both, two_hosts

TIMEOUT = 300  # seconds; a launch takes 15 on an idle machine, and a hang is noticed by the ranks after 60
STRATEGIES = {"ddp": "none"} | {name: f"scripts/train/deepspeed/{name}.json" for name in ("zero1", "zero2", "zero3")}
STEPS = {"optim.max_steps": 2, "components.language_model.trained": True, "components.language_model.lora": True}


@pytest.fixture(scope="module")
def launches(request) -> int:
    return request.config.getoption("--launches")


@contextmanager
def busy_machine():
    """As many processes as cores, each computing all the time."""
    burners = [multiprocessing.Process(target=_burn, daemon=True) for _ in range(os.cpu_count())]
    for burner in burners:
        burner.start()
    try:
        yield
    finally:
        for burner in burners:
            burner.kill()
            burner.join()


def _burn() -> None:
    while True:
        sum(range(10**6))


def path(python: ForkedPython, launch: int) -> str:
    """The PATH of a launch: nine of ten import nothing anew, and so take a tenth of the time."""
    return os.environ["PATH"] if launch % 10 == 9 else python.path


def words(keys: dict) -> list[str]:
    return ["--arm", "manager", *(word for key, value in keys.items() for word in (f"--{key}", str(value)))]


def left_of(folder: Path, python: ForkedPython) -> list[str]:
    """The processes of a run that have not ended: those that were started with its folder's name, and all forks."""
    commands = (process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"]))
    left = [" ".join(command) for command in commands if any(str(folder) in word for word in command)]
    _, forks = psutil.wait_procs(python.processes(), timeout=30)  # what forked one of them ends just behind it
    return left + [f"fork {fork.pid}" for fork in forks]


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_finished_run_ends_as_finished(tiny_keys, tmp_path, forked_python, launches, strategy):
    ends = []
    with busy_machine():
        for launch in range(max(launches, strategy == "ddp")):
            out, log = tmp_path / f"{launch}", tmp_path / f"{launch}.log"
            keys = tiny_keys("1", **STEPS, **{"run.deepspeed": STRATEGIES[strategy], "run.output_dir": out})
            environment = os.environ | {"NPROC_PER_NODE": "2", "OMP_NUM_THREADS": "1"}
            environment["PATH"] = path(forked_python, launch)
            with log.open("w") as stream:
                command = ["bash", "scripts/train/stage1.sh", *words(keys)]
                process = subprocess.Popen(command, stdout=stream, stderr=stream, env=environment)
                status = process.wait(TIMEOUT)
            assert (out / "model.safetensors").is_file(), log.read_text()
            ends.append((status, log.read_text() if status else "", left_of(out, forked_python)))
            print(f"{strategy}, launch {launch + 1}: status {status}", flush=True)
    assert ends == [(0, "", [])] * len(ends)


@pytest.mark.slow
def test_a_finished_run_on_two_hosts_ends_as_finished(tiny_keys, tmp_path, forked_python, launches, monkeypatch):
    ends = []
    with two_hosts() as hosts, busy_machine():
        for launch in range(launches // 2):
            out = tmp_path / f"{launch}"
            keys = tiny_keys("1", **STEPS, **{"run.deepspeed": STRATEGIES["zero3"], "run.output_dir": out})
            with monkeypatch.context() as patched:
                patched.setenv("PATH", path(forked_python, launch))
                both = run_on_both(hosts, "stage1", [words(keys)] * 2, tmp_path, TIMEOUT)
            left = left_of(out, forked_python)
            ends += [(status, output if status else "", left) for status, output in both]
            print(f"two hosts, launch {launch + 1}: status {ends[-2][0]} and {ends[-1][0]}", flush=True)
    assert ends == [(0, "", [])] * len(ends)
