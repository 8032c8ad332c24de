"""The command line's parser: spellings that are taken, and what is said about the others."""

from pathlib import Path

import pytest

from llava.arguments import ArgumentParser
from llava.cli import main, versions
from llava.errors import LlavaError


@pytest.fixture
def parser() -> ArgumentParser:
    parser = ArgumentParser(prog="tool")
    parser.add_argument("file", metavar="FILE", nargs="?", type=Path)
    parser.add_argument("--max_new_tokens", type=int)
    parser.add_argument("--style", choices=("bar", "radar"))
    parser.add_argument("--prices", type=float, nargs=2)
    parser.add_argument("--dry_run", action="store_true")
    parser.add_argument("--model", required=True)
    return parser


@pytest.mark.parametrize("words", ["--max_new_tokens 5", "--max-new-tokens 5", "--max-new_tokens=5"])
def test_dashes_and_underscores_are_one(parser, words):
    arguments = parser.parse_args([*words.split(), "--dry-run", "--model", "my-new_model"])
    assert (arguments.max_new_tokens, arguments.dry_run, arguments.model) == (5, True, "my-new_model")


def test_values_stay_as_they_are(parser):
    assert parser.parse_args(["--model=--dry-run"]).model == "--dry-run"
    assert parser.parse_args(["--model", "x", "--", "--dry-run"]).file == Path("--dry-run")


def test_help_has_one_spelling(parser):
    assert "--max_new_tokens" in parser.format_help()
    assert "--max-new-tokens" not in parser.format_help()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--max_new_token 5", "unknown option --max_new_token; did you mean --max_new_tokens?"),
        ("--max-new-tokns 5", "unknown option --max-new-tokns; did you mean --max_new_tokens?"),
        ("--MODEL x", "unknown option --MODEL; did you mean --model?"),
        ("-model x", "unknown option -model; did you mean --model?"),
        ("--modle x", "unknown option --modle; did you mean --model?"),  # and not that --model is missing
        ("--model x \u2014dry_run", "unknown option \u2014dry_run; did you mean --dry_run?"),
        ("--max 5 --model x", "unknown option --max; did you mean --max_new_tokens?"),
        ("--model x --dry", "unknown option --dry; did you mean --dry_run?"),
        ("--model x --zzz", "unknown option --zzz; see tool --help"),
        ("", "missing: --model; see tool --help"),
        ("--model", "--model needs a value; see tool --help"),
        ("--model x --prices 1", "--prices needs 2 values; see tool --help"),
        ("--model x --dry_run=1", "--dry_run takes no value, found '1'; see tool --help"),
        ("--model x --max_new_tokens five", "--max_new_tokens must be a whole number, found 'five'; see tool --help"),
        ("--model x --max_new_tokens 1e3", "--max_new_tokens must be a whole number, found '1e3'; see tool --help"),
        ("--model x --prices 1 nan", "--prices must be a number, found 'nan'; see tool --help"),
        ("--model x --prices inf 1", "--prices must be a number, found 'inf'; see tool --help"),
        ("--model x --style rader", "--style must be one of bar, radar; found 'rader'; did you mean radar?"),
        ("--model x --style pie", "--style must be one of bar, radar; found 'pie'; see tool --help"),
        ("--model x my file", "unexpected argument 'file' (a text with blanks needs quotation marks); see tool --help"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(parser, words, message):
    with pytest.raises(LlavaError) as refused:
        parser.parse_args(words.split())
    assert str(refused.value) == message


def test_long_and_empty_values_are_told_in_a_line(parser):
    with pytest.raises(LlavaError, match=r"must be a whole number, found '9{60}\.\.\.'; see"):
        parser.parse_args(["--model", "x", "--max_new_tokens", "9" * 5000])
    with pytest.raises(LlavaError, match="FILE must be a path, found an empty text"):
        parser.parse_args(["--model", "x", ""])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("chta", "unknown command 'chta'; did you mean chat?"),
        ("trian --dry_run", "unknown command 'trian'; did you mean train?"),
        (
            "xyz",
            "unknown command 'xyz'; choose of train, analyze, eval, bench, chat, demo-page, serve, data, convert, demo",
        ),
        ("--verion", "unknown option '--verion'; did you mean --version?"),
        ("data chek", "unknown command 'chek'; did you mean check?"),
        ("data", "missing: a command, one of check, download, prepare, preview; see llava data --help"),
        ("data --decode check", "unknown option --decode; see llava data --help"),
        ("convert merge_lora x --out y", "unknown command 'merge_lora'; did you mean merge-lora?"),
        ("eval reprot x", "unknown command 'reprot'; did you mean report?"),
        ("eval report x --styl bar", "unknown option --styl; did you mean --style?"),
        ("eval judge x --judge-modle y", "unknown option --judge-modle; did you mean --judge_model?"),
        ("demo make x --page 3", "unknown option --page; did you mean --pages?"),
        ("train --recipe x --dry-rum", "unknown option --dry_rum; did you mean --dry_run?"),
        (
            "train --recipe scripts/train/recipes/mllm/stage1.yaml --dry-run --optim.max-stps 4",
            "command line: unknown key 'optim.max_stps'; did you mean 'optim.max_steps'?",
        ),
    ],
)
def test_every_command_says_so(words, message, capsys):
    assert main(words.split()) == 2
    assert capsys.readouterr() == ("", f"error: {message}\n")


@pytest.mark.parametrize("flag", ["--version", "-V"])
def test_the_version(flag, capsys):
    import torch
    import transformers

    assert main([flag]) == 0
    printed = capsys.readouterr().out
    assert printed == versions() + "\n"
    assert printed.startswith("llava-ov-manager 0.1.0 (torch ")
    assert f"torch {torch.__version__}, transformers {transformers.__version__}, Python 3." in printed
