"""What the README shows can be run."""

import re
import subprocess

import pytest

from llava.cli import COMMANDS
from tests.paths import ROOT

README = (ROOT / "README.md").read_text()
SHELL = "\n".join(re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL))
PYTHON = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
SCRIPTS = sorted({line for line in re.findall(r"bash (scripts/train/\S+\.sh .*)", SHELL)})


def test_the_lists_are_not_empty():
    assert len(SCRIPTS) >= 2
    assert len(PYTHON) == 1


@pytest.mark.parametrize("command", SCRIPTS)
def test_every_training_command_dry_runs(command):
    words = [*command.split(), "--dry_run"] if "--dry_run" not in command else command.split()
    done = subprocess.run(["bash", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "trainable" in done.stdout


def test_every_make_target_and_llava_command_exists():
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert set(re.findall(r"^make (\w+)", SHELL, flags=re.MULTILINE)) <= targets
    assert set(re.findall(r"llava (\w+) ", SHELL)) <= set(COMMANDS)


def test_every_linked_file_exists():
    links = re.findall(r"\]\((?!http)([^)]+)\)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_python_example_runs(tiny_model_dir):
    exec(PYTHON[0].replace("playground/checkpoints/stage2-grid_manager", str(tiny_model_dir)), {})
