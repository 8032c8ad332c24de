"""Help loads nothing heavy, and what is wrong with the arguments is said before torch is imported."""

import json
import subprocess
import sys

import pytest

from llava.arguments import ArgumentParser
from llava.cli import COMMANDS, main
from llava.errors import LlavaError

# Commands that are not argparse's subcommands, of a parser of their own.
SPECIAL = {"eval": ("cases", "judge", "report")}

# One process a command: many a line of it, and after each what is imported then.
SCRIPT = """
import contextlib, io, json, sys
from llava.cli import main
results = []
for words in json.loads(sys.argv[1]):
    printed, told = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(told):
        try:
            status = main(words)
        except SystemExit as end:
            status = end.code
    heavy = [name for name in ("torch", "transformers", "numpy", "PIL") if name in sys.modules]
    results.append([status, printed.getvalue(), told.getvalue(), heavy])
print(json.dumps(results))
"""


def run(lines: list[list[str]]) -> list[list]:
    """(status, stdout, stderr, what heavy is imported by then) of each command line, in one new process."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(lines)], capture_output=True, text=True, check=False, timeout=100
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def subcommands(command: str, monkeypatch) -> list[str]:
    """Every subcommand of a command, as its parser knows them."""
    seen = []

    def parse(parser, *_):
        seen.extend(parser.commands.choices if parser.commands else ())
        raise LlavaError("seen")

    monkeypatch.setattr(ArgumentParser, "parse_known_args", parse)
    assert main([command]) == 2
    return seen


def test_every_subcommand_is_known(monkeypatch, capsys):
    found = {command: tuple(sorted(subcommands(command, monkeypatch))) for command in COMMANDS}
    assert found == {
        "train": (),
        "analyze": (),
        "eval": (),
        "chat": (),
        "demo-page": (),
        "serve": (),
        "data": ("check", "download", "prepare", "preview"),
        "convert": ("export", "import", "merge-lora"),
        "demo": (
            *("dinov2", "emoji_floor", "emoji_pages", "emoji_towers", "make", "pretrain", "smollm2", "text_pages"),
            "text_tower",
        ),
        "bench": ("budget", "fusion", "paper", "seeds", "table"),
    }


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command_loads_nothing_heavy(command, monkeypatch, capsys):
    with monkeypatch.context() as patched:
        below = (*subcommands(command, patched), *SPECIAL.get(command, ()))
    lines = [[command, "--help"], *([command, name, "--help"] for name in below)]
    for words, (status, printed, told, heavy) in zip(lines, run(lines)):
        assert (status, told, heavy) == (0, "", ["numpy", "PIL"] if command == "chat" else []), words
        assert printed.startswith(f"usage: llava {' '.join(words[:-1])} "), words


def test_wrong_arguments_of_every_command_are_told_before_torch(tmp_path):
    """Unknown flag, unknown choice, missing argument, missing folder, output that exists; each one line, status 2."""
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "kept").write_text("kept")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"model_type": "llava_onevision"}')
    full, other, absent = (str(tmp_path / name) for name in ("full", "other", "absent"))
    export = ["convert", "export"]
    remote = ["--format", "remote_code"]
    lines = {
        "unknown command 'chta'": ["chta"],
        "missing: --recipe": ["train"],
        "absent.yaml: cannot be read": ["train", "--recipe", f"{absent}.yaml"],
        "unknown option --oput": [*export, absent, "--oput", "x", *remote],
        "--format must be one of llava_onevision, remote_code;": [
            *export,
            "x",
            "--out",
            "y",
            "--format",
            "onnx",
        ],
        "missing: --out, --format": [*export, absent],
        "exists and is not an empty folder; choose another --out": [*export, other, "--out", full, *remote],
        f"MODEL {absent}: no such model folder": [*export, absent, "--out", absent, *remote],
        f"llava convert import {other} --out DIR makes one of it": [*export, other, "--out", absent, *remote],
        "name one of the folders in it: other": [*export, str(tmp_path), "--out", absent, *remote],
        "llava convert import lmms-lab/any --out DIR": [*export, "lmms-lab/any", "--out", absent, *remote],
        f"MODEL {full}/kept: a file, not a model folder": [*export, f"{full}/kept", "--out", absent, *remote],
        f"CHECKPOINT {absent}: no such model folder": ["convert", "merge-lora", absent, "--out", f"{absent}2"],
        f"SOURCE {absent}: no such file or folder": ["convert", "import", absent, "--out", f"{absent}2"],
        f"--vision_tower {absent}1: no such file or folder; --language_model {absent}2: no such file or folder": [
            *["convert", "import", "--vision_tower", f"{absent}1"],
            *["--language_model", f"{absent}2", "--out", absent],
        ],
        "SOURCE tests/models/none: no such file or folder": ["convert", "import", "tests/models/none", "--out", absent],
        "both --vision_tower DIR and --language_model DIR are needed": ["convert", "import", "--out", absent],
        "it has neither config.json nor mm_projector.bin": ["convert", "import", full, "--out", absent],
        "--max_shard_size: '5 apples' is no size": [
            "convert",
            "import",
            "x",
            "--out",
            "y",
            "--max_shard_size",
            "5 apples",
        ],
        "missing: mixture": ["data", "check"],
        "absent.yaml": ["data", "check", f"{absent}.yaml"],
        "--workers must be at least 1, found 0": ["data", "check", f"{absent}.yaml", "--workers", "0"],
        "missing: --model, --data, --index": ["data", "preview"],
        "full is not empty": ["demo", "make", full],
        "--pages must be at least 1, found 0": ["demo", "make", absent, "--pages", "0"],
        "full/kept: a file, and no folder; name": ["demo", "pretrain", f"{full}/kept"],
        "missing: --model, --out": ["eval"],
        "unknown task 'ai2'; did you mean ai2d?": ["eval", "--model", other, "--out", absent, "--tasks", "ai2"],
        "missing: MODEL": ["demo-page"],
        "--port must be from 1 to 65535, found 0": ["demo-page", other, "--port", "0"],
        "--pictures must be at least 0, found -1": ["serve", other, "--pictures", "-1"],
        "llava_onevision": ["serve", other],
        f"{absent}: no such model folder": ["eval", "--model", absent, "--out", absent],
        f"{absent}: no such run folder": ["eval", "judge", absent],
        "--figures: unknown figure '4'": ["analyze", absent, "--data", absent, "--out", absent, "--figures", "4"],
        "missing: MODEL, --data, --out": ["analyze"],
        "missing: RUN": ["eval", "report"],
        "missing: RUN, --out": ["eval", "cases"],
        f"{absent}2: no such run folder": ["eval", "cases", f"{absent}2", f"{absent}3", "--out", absent],
        "--methods: unknown row 'managr'; did you mean manager?": ["bench", "fusion", "--methods", "managr"],
        "absent.json: cannot be read (No such file or directory)": ["bench", "table", f"{absent}.json"],
        "--seeds must be above 0; found 0": ["bench", "seeds", absent, "--seeds", "0"],
    }
    for message, (status, printed, told, heavy) in zip(lines, run(list(lines.values()))):
        assert message in told
        assert (status, printed, told.count("\n"), told.startswith("error: ")) == (2, "", 1, True), told
        assert not {"torch", "transformers"} & set(heavy), told
    assert (tmp_path / "full" / "kept").read_text() == "kept"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full", "other"]
