"""The shell scripts: dry runs of every stage and arm, the processes they start, and how they fail."""

import os
import subprocess
from pathlib import Path

import pytest

from llava import cli
from llava.errors import LlavaError
from llava.train.main import main, recipe_keys

SCRIPTS = Path("scripts/train")
STAGES = ("stage1", "stage1_5", "stage2")
ARMS = ("baseline", "manager", "grid", "grid_manager")


def words(keys: dict) -> list[str]:
    return [word for key, value in keys.items() for word in (f"--{key}", "none" if value is None else str(value))]


def run(script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    environment = {key: value for key, value in os.environ.items() if key != "NPROC_PER_NODE"} | environment
    command = ["bash", f"scripts/train/{script}.sh", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, check=False)


def test_no_script_is_left_out():
    assert {path.stem for path in SCRIPTS.glob("*.sh")} == {*STAGES, "launch"}
    assert {path.stem for path in (SCRIPTS / "mixtures").glob("*.yaml")} == set(STAGES)
    assert {path.stem for path in (SCRIPTS / "recipes").glob("*.yaml")} == {*STAGES, "model_0_5b"}


@pytest.mark.parametrize("stage", STAGES)
def test_dry_run_of_every_script(stage):
    """On a fresh clone: no data, no models, real sizes."""
    done = run(stage, "--arm", "grid_manager", "--dry_run", "--optim.max_steps", "10", NPROC_PER_NODE="8", NNODES="2")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "samples     " in done.stdout
    accumulation = 2 if stage == "stage1" else 16
    batch = 16 if stage == "stage1" else 2
    assert f"batch       512 = {batch} x {accumulation} accumulated x 16 processes" in done.stdout
    assert "steps       10\n" in done.stdout
    assert "total           893,699,744" in done.stdout


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("arm", ARMS)
def test_dry_run_of_every_arm(stage, arm, capsys):
    assert main(["--recipe", f"{SCRIPTS}/recipes/{stage}.yaml", "--arm", arm, "--dry_run"]) == 0
    printed = capsys.readouterr().out
    rows = {line.split()[0]: line.split()[1:] for line in printed.splitlines() if line.strip()}
    assert rows["run.output_dir"][0].startswith(f"playground/checkpoints/{stage}-")
    assert ("managers" in rows) == ("manager" in arm)
    assert rows["language_model"][1] == ("0" if stage == "stage1" else "494,032,768")
    assert rows["total"][0] == ("893,699,744" if "manager" in arm else "893,618,208")
    tokens = int(rows["tokens"][1].replace(",", ""))
    steps = int(rows["steps"][0].replace(",", ""))
    per_sample = tokens / steps / 512
    assert (per_sample > 2500) == ("grid" in arm and stage != "stage1")


def test_dry_run_counts_the_data_when_it_is_there(tiny_keys, capsys):
    arguments = words(tiny_keys("1", **{"optim.epochs": 3}))
    assert main(["--recipe", f"{SCRIPTS}/recipes/stage1.yaml", "--arm", "manager", "--dry_run", *arguments]) == 0
    printed = capsys.readouterr().out
    assert "samples     16 x 3 epochs" in printed
    assert "steps       12\n" in printed
    assert "note:" not in printed


@pytest.mark.parametrize("content", [None, '{"model_type": "qwen2"}'])
def test_dry_run_does_not_pass_over_a_wrong_folder(tiny_keys, tmp_path, content):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    arguments = words(tiny_keys("2", **{"model.start_from": tmp_path}))
    with pytest.raises(LlavaError, match=f"model.start_from {tmp_path}: "):
        main(["--recipe", f"{SCRIPTS}/recipes/stage2.yaml", "--dry_run", *arguments])


def test_a_user_error_is_one_line_and_starts_nothing():
    done = run("stage2", "--arm", "grid", "--optim.max_stesp", "10")
    assert done.returncode == 2
    assert done.stdout == ""
    expected = "error: command line: unknown key 'optim.max_stesp'; did you mean 'optim.max_steps'?\n"
    assert done.stderr == expected


def test_help():
    assert "--dry_run" in run("stage1", "--help").stdout


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, "--standalone --nproc_per_node 1"),
        ({"NPROC_PER_NODE": "2"}, "--standalone --nproc_per_node 2"),
        (
            {"NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "1234"},
            "--nnodes 2 --node_rank 1 --master_addr 10.0.0.1 --master_port 1234 --nproc_per_node 1",
        ),
        ({"NNODES": "2"}, "--nnodes 2 --node_rank 0 --master_addr 127.0.0.1 --master_port 29500 --nproc_per_node 1"),
    ],
)
def test_the_processes_that_are_started(tiny_keys, tmp_path, environment, expected):
    """With a stand-in for torchrun that prints how it was called."""
    for name, answer in (("torchrun", 'echo "$@"'), ("nvidia-smi", "exit 1")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{answer}\n")
        (tmp_path / name).chmod(0o755)
    done = run("stage1", *words(tiny_keys("1")), **environment, PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert done.stderr == ""
    assert done.stdout.startswith(f"{expected} -m llava.cli train --recipe scripts/train/recipes/stage1.yaml --model.")


def test_recipe_keys():
    assert recipe_keys(["--a.b", "1", "--c=2", "--d", "-1"]) == {"a.b": "1", "c": "2", "d": "-1"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--a"], "--a has no value"),
        (["--a", "--b", "1"], "--a has no value"),
        (["a"], "unexpected argument 'a'"),
        (["--=1"], "unexpected argument '--=1'"),
    ],
)
def test_wrong_arguments(given, message):
    with pytest.raises(LlavaError, match=message):
        recipe_keys(given)


def test_the_llava_command_trains_too(capsys):
    assert cli.main(["train", "--recipe", "absent.yaml"]) == 2
    assert capsys.readouterr().err == "error: absent.yaml: cannot be read (No such file or directory)\n"
