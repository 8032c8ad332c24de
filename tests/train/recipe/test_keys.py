"""Every key of a recipe is explained, on the terminal and in docs/recipe_keys.md."""

import subprocess
import sys

import pytest

from llava.cli import main
from llava.train.recipe.keys import as_markdown, as_text, sections
from llava.train.recipe.schema import all_recipe_keys
from llava.train.two_tower.recipe import two_tower_keys
from tests.paths import ROOT

KEYS = two_tower_keys() | all_recipe_keys()


def test_no_key_is_without_a_sentence():
    assert len(KEYS) > 70
    assert [key for key, field in KEYS.items() if not field.sentence.endswith(".")] == []


def test_the_page_is_what_the_command_writes():
    """After a change: llava train --keys markdown > docs/recipe_keys.md"""
    assert (ROOT / "docs/recipe_keys.md").read_text() == as_markdown() + "\n"


@pytest.mark.parametrize("text", [as_markdown(), as_text()], ids=["markdown", "text"])
def test_every_key_stands_in_it_once(text):
    lines = [line.strip("|` ").partition(" ")[0].rstrip("`") for line in text.splitlines()]
    assert [line for line in lines if line in KEYS] == [key for _, keys in sections().values() for key in keys]
    assert set(KEYS) <= set(lines)


def test_a_key_in_full(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as ended:
        main(["train", "--keys"])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert (
        "  optim.warmup  a number, between 0 and 1; default 0.03\n"
        "      Share of the steps in which the learning rates rise.\n"
    ) in printed
    assert "  optim.max_steps  a whole number or none, at least 1; default none\n" in printed
    assert "  data.template  one of plain, qwen_1_5\n" in printed
    assert "| `run.resume` | true or false or delete | `true` | Whether a stage that is started again" in as_markdown()


def test_keys_are_printed_without_torch():
    code = (
        "import sys; from llava import cli\n"
        "try: cli.main(['train', '--keys', 'markdown'])\n"
        "except SystemExit: sys.exit(bool({'torch', 'numpy', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("# Every key of a recipe\n")


def test_an_unknown_form_is_one_line(capsys):
    assert main(["train", "--keys", "html"]) == 2
    assert capsys.readouterr().err.startswith("error: --keys must be one of text, markdown; found 'html'")
