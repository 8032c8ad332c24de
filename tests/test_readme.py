"""What README and docs show can be run, and what they name is there."""

import base64
import json
import os
import re
import shlex
import subprocess
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from PIL import Image

import llava
from llava.arguments import ArgumentParser
from llava.cli import COMMANDS, main
from llava.fusion.methods import METHODS
from llava.paper import INFERENCE_MS, OVERALL, TABLE_IV, TRAINING_MS
from llava.train.main import main as train
from llava.train.main import recipe_keys
from llava.train.recipe.load import known_keys, load_recipe
from llava.train.recipe.schema import recipe_keys as keys_of_method
from tests.paths import ROOT

PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "playground/README.md")]
PAGES += sorted((ROOT / "docs").glob("*.md"))
TEXTS = {str(page.relative_to(ROOT)): page.read_text() for page in PAGES}
README_WORDS = 1200
ELSEWHERE = {  # commands that other tests run
    "transformers serve ": "tests/eval/test_serving.py",
    "git clone ": "tests/mllm/test_transformers_generation.py",
    "pytest tests/mllm/test_transformers_generation.py ": "tests/mllm/test_transformers_generation.py",
}
HOOKS = ROOT / ".pre-commit-config.yaml"
TRAIN = re.compile(r"bash scripts/train/(\w+)\.sh (.*)")
EVALUATE = re.compile(r"scripts/eval/(benchmarks|judge)\.sh (.*)")
NO_KEY = re.compile(r"^model\.model\.|\.(py|md|yaml|json)$")  # an attribute of the model, a file
# The file that a folder of this repository is written as, in a link or between backticks.
PATHS = re.compile(r"`((?:llava|scripts|tests|docs|benchmarks|playground|examples)/[\w./*-]*)`")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: str
    text: str


def blocks(language: str) -> list[Block]:
    return [
        Block(page, text)
        for page, content in TEXTS.items()
        for text in re.findall(rf"```{language}\n(.*?)```", content, flags=re.DOTALL)
    ]


def shell_lines(pages: Iterable[str]) -> list[str]:
    """Every command of the pages' shell blocks, without comments; those that && joins apart."""
    texts = [block.text for block in blocks("bash") if block.page in pages]
    lines = [line.split("  #")[0].strip() for text in texts for line in text.splitlines()]
    return [part for line in lines if not line.startswith("#") for part in line.split(" && ") if part]


LINES = shell_lines(TEXTS)
SCRIPTS = sorted({found[0] for line in shell_lines(["README.md"]) if (found := TRAIN.search(line))})
TRAINING = sorted({found[0] for line in LINES if (found := TRAIN.search(line))} - set(SCRIPTS))
PYTHON = blocks("python")
LLAVA = sorted({line.split("| ")[-1] for line in LINES if re.search(r"(^|\| )llava ", line)})
REQUEST = next(block.text for block in blocks("bash") if "curl " in block.text)
EVALUATIONS = sorted({found[0] for line in LINES if (found := EVALUATE.search(line))})


def test_the_lists_are_not_empty():
    assert len(SCRIPTS) >= 2
    assert len(TRAINING) >= 1
    assert len(PYTHON) >= 3
    assert len(LLAVA) >= 12
    assert len(EVALUATIONS) >= 4
    assert len(TEXTS) >= 12


def test_every_command_is_of_a_kind_that_is_looked_at():
    """Else a new kind of line would be run by nothing."""
    kinds = ("make ", "llava ", "echo ", "scripts/eval/", "bash scripts/train/", "pip install ", *ELSEWHERE)
    lines = [re.sub(r"^(\w+=\S+ )+", "", line) for line in LINES if line not in REQUEST]
    assert [line for line in lines if not line.startswith(kinds)] == []
    assert all((ROOT / name).is_file() for name in ELSEWHERE.values())


def test_the_readme_is_short():
    assert len(TEXTS["README.md"].split()) <= README_WORDS


def test_lines_are_as_long_as_those_of_the_code():
    """Tables, pictures and blocks aside."""
    prose = {page: re.sub(r"```.*?```", "", text, flags=re.DOTALL).splitlines() for page, text in TEXTS.items()}
    long = [(page, line) for page, lines in prose.items() for line in lines if len(line) > 120]
    assert [(page, line) for page, line in long if not line.startswith(("|", "!["))] == []


@pytest.mark.parametrize("command", SCRIPTS)
def test_every_training_command_of_the_readme_dry_runs(command, forked_python):
    words = [*command.split(), "--dry_run"] if "--dry_run" not in command else command.split()
    environment = os.environ | {"PATH": forked_python.path}
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "trainable" in done.stdout


@pytest.mark.parametrize("command", TRAINING)
def test_every_training_command_dry_runs_in_this_process(command, monkeypatch, capsys):
    """All that the shell scripts leave to Python; that they pass it on is seen with those of the README."""
    monkeypatch.chdir(ROOT)
    stage, words = TRAIN.search(command).groups()
    assert (ROOT / f"scripts/train/{stage}.sh").is_file()
    words = [*shlex.split(words), "--dry_run"] if "--dry_run" not in words else shlex.split(words)
    if stage == "two_tower":
        stage = words.pop(0)
    if "--size" in words:
        place = words.index("--size")
        _, size = words[place : place + 2]
        del words[place : place + 2]
        stage = f"{stage}_{size}"
    recipe = next(ROOT.glob(f"scripts/train/recipes/**/{stage}.yaml"))
    assert train(["--recipe", str(recipe), *words]) == 0
    assert "trainable" in capsys.readouterr().out


def test_the_sizes_that_the_pages_state_are_what_a_dry_run_says(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("NNODES", "2")
    monkeypatch.setenv("NPROC_PER_NODE", "8")
    recipe = str(next(ROOT.glob("scripts/train/recipes/**/stage2.yaml")))
    assert train(["--recipe", recipe, "--arm", "grid_manager", "--dry_run"]) == 0
    printed = capsys.readouterr().out
    samples = re.search(r"all stages +([\d,]+)", printed)[1]
    parameters = int(re.search(r"^total +([\d,]+)", printed, re.MULTILINE)[1].replace(",", ""))
    steps = re.search(r"^steps +([\d,]+)", printed, re.MULTILINE)[1]
    zero1 = float(re.search(r"^sum +[\d.]+ +([\d.]+)", printed, re.MULTILINE)[1])
    for text in (f"{samples} samples", f"{parameters / 1e6:.2f} M parameters", f"estimates {zero1:.1f} GB"):
        assert text in " ".join(TEXTS["README.md"].split())
    assert f"| {steps} | 3.9 billion | 12.5 billion | 13.1 | {zero1:.1f} |" in TEXTS["docs/train.md"]
    hours = [round(ms * int(samples.replace(",", "")) / 3.6e6 * 16) for ms in (11.84, 12.22, 51.95, 54.17)]
    columns = (OVERALL, TRAINING_MS, INFERENCE_MS)
    for arm, row in TABLE_IV.rows.items():
        cells = " | ".join(f"{row[name]:.2f}" for name in columns)
        assert re.search(rf"^\| `{arm}` \| \S+ \| \S+ \| {cells} \|", TEXTS["README.md"], re.MULTILINE), arm
    table = re.findall(r"^\| `\w+` .*\| ([\d,]+) \|$", TEXTS["README.md"], re.MULTILINE)
    assert [f"{value:,}" for value in hours] == table


class ReadError(Exception):
    """Ends a command that is read: its arguments are right."""


def read_only(words: list[str], monkeypatch) -> None:
    """Takes the command as far as its parser does. Raises LlavaError for a wrong argument."""
    parse = ArgumentParser.parse_args

    def read(parser, *given):
        parse(parser, *given)
        raise ReadError

    monkeypatch.setattr(ArgumentParser, "parse_args", read)
    with pytest.raises(ReadError):
        main(words)


@pytest.mark.parametrize("command", LLAVA)
def test_the_arguments_of_every_llava_command_are_right(command, monkeypatch):
    words = shlex.split(command)
    assert words[0] == "llava"
    assert words[1] in COMMANDS
    read_only(words[1:], monkeypatch)


@pytest.mark.parametrize("command", EVALUATIONS)
def test_the_arguments_of_every_evaluation_script_are_right(command, monkeypatch):
    script, words = EVALUATE.fullmatch(command).groups()
    words = shlex.split(words)
    read_only(
        ["eval", "judge", *words] if script == "judge" else ["eval", "--model", words[0], "--out", "x", *words[1:]],
        monkeypatch,
    )
    assert os.access(ROOT / f"scripts/eval/{script}.sh", os.X_OK)


def test_every_make_target_exists():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    named = {target for text in TEXTS.values() for target in re.findall(r"(?:^|`)make ([\w-]+)", text, re.MULTILINE)}
    assert {"quickstart", "test", "test-mixed", "test-exits"} <= named <= targets


def test_every_extra_exists():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = {extra for text in TEXTS.values() for extra in re.findall(r"'\.\[([\w-]+)\]'", text)}
    assert named
    assert named <= set(extras)


def test_every_linked_file_and_heading_exists():
    broken, count = [], 0
    for page, text in TEXTS.items():
        for link in re.findall(r"\]\((?!http)([^)]+)\)", text):
            name, _, heading = link.partition("#")
            target = (ROOT / page).parent / name if name else ROOT / page
            count += 1
            if not target.exists() or (heading and heading not in headings(target)):
                broken.append((page, link))
    assert count > 50
    assert broken == []


def headings(page: Path) -> set[str]:
    """The anchors of a page, as GitHub makes them."""
    lines = re.findall(r"^#+ (.*)", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", line.lower()).replace(" ", "-") for line in lines}


def test_every_path_between_backticks_exists():
    named = {(page, path) for page, text in TEXTS.items() for path in PATHS.findall(text)}
    named = {(page, path) for page, path in named if not path.startswith("playground/") or path.endswith(".md")}
    assert len(named) > 8
    assert [(page, path) for page, path in sorted(named) if not any(ROOT.glob(path.rstrip("/")))] == []


def test_every_page_is_linked_from_another():
    links = {
        ((ROOT / page).parent / link.partition("#")[0]).resolve()
        for page, text in TEXTS.items()
        for link in re.findall(r"\]\((?!http)([^)]+)\)", text)
        if not link.startswith("#")
    }
    assert [str(page) for page in PAGES[1:] if page.resolve() not in links] == []


def test_every_recipe_key_exists():
    """Between backticks: `data.packing`, `--run.compile true` and several of them in a row."""
    keys = known_keys()
    key = re.compile(rf"(?<![\w./-])(?:--)?((?:{'|'.join({key.partition('.')[0] for key in keys})})\.[\w.]+)")
    named = {(page, name) for page, span in spans() for name in key.findall(span) if not NO_KEY.search(name)}
    assert len(named) > 20
    assert [(page, name) for page, name in sorted(named) if name not in keys] == []


def test_every_recipe_setting_is_one_that_it_takes():
    """`--run.compile true` and `--key a|b|c`, read as a command's words are."""
    settings = {
        tuple(shlex.split(span.replace("|", " | "))) for _, span in spans() if re.match(r"--\w+\.\w+\S* ", span)
    }
    assert len(settings) > 10
    recipe = str(next(ROOT.glob("scripts/train/recipes/**/stage2.yaml")))
    for words in sorted(settings):
        choices = [word for word in words[1:] if word != "|"] if "|" in words else [None]
        for choice in choices:
            keys = recipe_keys([words[0], choice] if choice else list(words))
            of_keys = [method for method in ("manager", *METHODS) if set(keys) <= keys_of_method(method).keys()]
            if not of_keys:
                load_recipe(f"{ROOT}/scripts/train/recipes/two_tower/pretrain.yaml", None, (), keys)
                continue
            method = of_keys[0]
            load_recipe(recipe, "grid" if method == "none" else f"grid_{method}", (), keys)


def spans() -> set[tuple[str, str]]:
    """(page, what stands between two backticks), outside of blocks, in one line."""
    texts = {page: re.sub(r"```.*?```", "", text, flags=re.DOTALL) for page, text in TEXTS.items()}
    return {(page, " ".join(span.split())) for page, text in texts.items() for span in re.findall(r"`([^`]+)`", text)}


def test_the_request_is_one_that_the_server_takes(tmp_path):
    """What curl would send; tests/eval/test_serving.py sends such messages."""
    Image.new("RGB", (10, 6), "white").save(tmp_path / "photo.jpg")
    command = re.sub(r"curl .*", "cat", REQUEST)
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=True)
    request = json.loads(done.stdout)
    assert set(request) == {"model", "max_tokens", "messages"}
    image, text = request["messages"][0]["content"]
    kind, data = image["image_url"]["url"].split(",")
    assert (kind, text["type"]) == ("data:image/jpeg;base64", "text")
    assert base64.b64decode(data) == (tmp_path / "photo.jpg").read_bytes()


@pytest.mark.parametrize("block", PYTHON, ids=lambda block: block.page)
def test_every_python_example_runs(block, tiny_model_dir, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (100, 60), "white").save("photo.jpg")
    exec(re.sub(r"playground/checkpoints/[\w-]+", str(tiny_model_dir), block.text), {})


def test_the_citation_names_the_papers_authors_as_the_readme_does():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (citation["cff-version"], citation["license"]) == ("1.2.0", "Apache-2.0")
    assert {"message", "title", "authors"} <= set(citation)  # what the format requires
    assert citation["version"] == llava.__version__
    paper = citation["preferred-citation"]
    names = [f"{author['family-names']}, {author['given-names']}" for author in paper["authors"]]
    assert names == ["Xu, Xiao", "Qin, Libo", "Che, Wanxiang", "Kan, Min-Yen"]
    assert f"author  = {{{' and '.join(names)}}}" in TEXTS["README.md"]
    assert paper["title"] in TEXTS["README.md"]


def test_hooks_run_the_tools_of_lint():
    (repository,) = yaml.safe_load(HOOKS.read_text())["repos"]
    hooks = [hook["entry"].removesuffix(" --force-exclude") for hook in repository["hooks"]]
    lint = re.search(r"^lint: install\n((?:\t.+\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)[1]
    checks = [line.strip().replace("$(BIN)", ".venv/bin") for line in lint.splitlines()]
    assert hooks[:-1] == [re.sub(r"( --check)? \.$", "", check) for check in checks]
    assert hooks[-1] == ".venv/bin/check-added-large-files --maxkb=1000"
