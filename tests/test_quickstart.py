"""The whole way at a smoke size: data, pretraining, three stages on two processes under ZeRO-3, evaluation, chat."""

import json
import os
import subprocess

import pytest

from tests.paths import ROOT

STAGE2 = "scripts/train/recipes/mllm/stage2.yaml"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_quickstart_at_smoke_size(forked_python, tmp_path):
    out = tmp_path / "quickstart"
    environment = os.environ | {"QUICKSTART_DIR": str(out), "QUICKSTART_SIZE": "smoke", "PATH": forked_python.path}
    done = subprocess.run(
        ["bash", "scripts/quickstart.sh"], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    stages = [("stage1-manager", 2), ("stage1_5-grid_manager", 2), ("stage2-grid_manager", 2)]
    for name, steps in stages:
        run = json.loads((out / "checkpoints" / name / "run.json").read_text())
        assert run["steps"] == steps
        assert run["plan"]["processes"] == 2
        assert json.loads((ROOT / run["recipe"]["run"]["deepspeed"]).read_text())["zero_optimization"]["stage"] == 3
    report = json.loads((out / "eval" / "report.json").read_text())
    (place,) = [row for row in report["rows"] if row["metric"] == "exact_match_place"]
    assert set(place["scores"]) == {"grid_manager", "grid_manager_blind"}
    assert {score["documents"] for score in place["scores"].values()} == {6}
    assert "one question in the chat" in done.stdout
    assert "answer    " in done.stdout


def test_help_is_the_scripts_own_description():
    done = subprocess.run(
        ["bash", "scripts/quickstart.sh", "--help"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "bash scripts/quickstart.sh [ARMS]" in done.stdout
    assert "QUICKSTART_SIZE" in done.stdout.splitlines()[-1]


@pytest.mark.parametrize(
    ("arms", "changes", "message"),
    [
        ("grid_manager", {"QUICKSTART_SIZE": "tiny"}, "QUICKSTART_SIZE must be full or smoke, found tiny"),
        (
            "grid managers",
            {},
            f"{STAGE2}: unknown arm 'managers'; did you mean 'manager'? There are baseline, ",
        ),
        ("all", {"QUICKSTART_DIR": "{full}"}, "{full} is not empty and was not made by the quickstart"),
    ],
)
def test_mistakes_are_one_clear_line(tmp_path, arms, changes, message):
    full = tmp_path / "full"
    full.mkdir()
    (full / "precious.txt").touch()
    environment = {**os.environ, "QUICKSTART_DIR": str(tmp_path / "new")}
    environment |= {key: value.format(full=full) for key, value in changes.items()}
    done = subprocess.run(
        ["bash", "scripts/quickstart.sh", arms], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {message.format(full=full)}")
    assert done.stderr.count("\n") == 1
    assert (full / "precious.txt").exists()
