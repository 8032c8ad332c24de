"""The stage scripts on two hosts: they train as one does, and end in one line when they were given other things."""

import hashlib
import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from tests.train.hosts import run_on_both, two_hosts, why_no_namespaces

TIMEOUT = 200  # seconds; a stage takes about 20 on an idle machine
STAGES = ("1", "1_5", "2")
ZERO3 = {"run.deepspeed": "scripts/train/deepspeed/zero3.json"}


@pytest.fixture
def hosts(forked_python, monkeypatch):
    monkeypatch.setenv("PATH", forked_python.path)  # of the scripts
    with two_hosts() as pair:
        yield pair


def words(keys: dict, arm: str = "grid_manager") -> list[str]:
    return ["--arm", arm, *(word for key, value in keys.items() for word in (f"--{key}", str(value)))]


def losses(folder: Path) -> list[float]:
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]


@pytest.mark.slow
@pytest.mark.timeout(4 * TIMEOUT)
def test_three_stages_across_two_hosts_equal_those_on_one(tiny_keys, tmp_path, hosts):
    print(f"hosts are loopback: {why_no_namespaces()}" if hosts[0].interface == "lo" else "hosts are namespaces")
    start = {}
    for stage in STAGES:
        keys = tiny_keys(stage, **ZERO3, **start, **{"run.output_dir": f"{tmp_path}/two-{stage}"})
        for status, output in run_on_both(hosts, f"stage{stage}", [words(keys)] * 2, tmp_path, TIMEOUT):
            assert status == 0, output
        first, second = ((tmp_path / f"stage{stage}-{node}.log").read_text() for node in range(2))
        assert "preflight   2 processes: " in first
        assert "2 x 1 accumulated x 2 processes" in first
        assert {line.split()[-3] for line in first.splitlines() if line.startswith("0")} == {hosts[0].interface}
        assert "Traceback" not in first + second
        start = {"model.start_from": f"{tmp_path}/two-{stage}"}

    # One host starts where the two did: each stage's losses are compared, not only the first's.
    for stage in ("1", "2"):
        start = {} if stage == "1" else {"model.start_from": f"{tmp_path}/two-1_5"}
        keys = tiny_keys(stage, **ZERO3, **start, **{"run.output_dir": f"{tmp_path}/one-{stage}"})
        environment = {**os.environ, "NPROC_PER_NODE": "2", "OMP_NUM_THREADS": "1"}
        command = ["bash", f"scripts/train/stage{stage}.sh", *words(keys)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, env=environment, check=False)
        assert done.returncode == 0, done.stderr
        one, two = losses(tmp_path / f"one-{stage}"), losses(tmp_path / f"two-{stage}")
        assert len(one) == 4
        assert one == pytest.approx(two, abs=1e-6)


@pytest.mark.slow
@pytest.mark.timeout(2 * TIMEOUT)
def test_hosts_with_other_recipes_stop_with_one_line(tiny_keys, tmp_path, hosts):
    keys = tiny_keys("1", **ZERO3, **{"run.output_dir": f"{tmp_path}/out"})
    other = keys | {"optim.lr": 5e-4}
    ends = run_on_both(hosts, "stage1", [words(keys), words(other)], tmp_path, TIMEOUT)
    check_refusal(ends, "ranks differ in recipe optim.lr: 0.001 on rank 0 (", "), 0.0005 on rank 1 (")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.timeout(2 * TIMEOUT)
def test_hosts_with_other_data_stop_with_one_line(tiny_keys, data_folder, tmp_path, hosts):
    """The same paths on both, and one other row in a file of the second host."""
    if hosts[0].interface == "lo":
        pytest.skip(f"two file systems need namespaces: {why_no_namespaces()}")
    other = tmp_path / "other.json"
    other.write_text((data_folder / "captions.json").read_text().replace("sample-3", "sample-x"))
    mounts = ("sh", "-c", 'mount --bind "$0" "$1" && shift && exec "$@"', str(other), f"{data_folder}/captions.json")
    second = replace(hosts[1], prefix=(*hosts[1].prefix, *mounts))  # `ip netns exec` has mounts of its own
    keys = tiny_keys("1", **ZERO3, **{"run.output_dir": f"{tmp_path}/out"})
    ends = run_on_both([hosts[0], second], "stage1", [words(keys)] * 2, tmp_path, TIMEOUT)
    hashes = [hashlib.sha256(path.read_bytes()).hexdigest()[:12] for path in (data_folder / "captions.json", other)]
    check_refusal(
        ends, f"ranks differ in data {data_folder}/captions.json: {hashes[0]} on rank 0 (", f"{hashes[1]} on rank 1 ("
    )
    assert not (tmp_path / "out").exists()


def check_refusal(ends: list[tuple[int, str]], *parts: str) -> None:
    for status, output in ends:
        assert status == 2, output
        assert "Traceback" not in output
        (line,) = (line for line in output.splitlines() if "error" in line)  # libraries may remark on other things
        assert line.startswith("error: ")
        for part in parts:
            assert part in line
