import shlex
from fnmatch import fnmatch
from itertools import pairwise

import pytest
from huggingface_hub import constants

from llava.cli import main
from llava.data.mixture import mixture_entries
from llava.errors import LlavaError
from llava.prepare_data import download
from llava.prepare_data.download import download_commands
from tests.paths import ROOT

STAGES = ("stage1", "stage1_5", "stage2")
MIXTURE = """
datasets:
- {json_path: data/Name/a.json, hub: {repo: owner/Name, config: "a(b,c)"}}
- {json_path: data/Name/b.json, hub: {repo: owner/Name, config: b}}
- {json_path: data/Own/own.json}
- {json_path: data/Name/b2.json, hub: {repo: owner/Name, config: b}}
- {json_path: data/Whole/w.json, hub: {repo: owner/Whole}}
"""


@pytest.fixture
def mixture(tmp_path):
    (tmp_path / "mixture.yaml").write_text(MIXTURE)
    return str(tmp_path / "mixture.yaml")


def test_the_commands_are_printed_and_can_be_pasted(mixture, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["data", "download", mixture, "--to", "my snapshots"]) == 0
    fetch, prepare = capsys.readouterr().out.split("\n\n# then\n")
    first, second = (shlex.split(line) for line in fetch.splitlines())
    assert " ".join(first[:-1]) == (
        "hf download owner/Name --repo-type dataset --include a(b,c)/* --include b/* --local-dir"
    )
    assert " ".join(second[:-1]) == "hf download owner/Whole --repo-type dataset --local-dir"
    assert (first[-1], second[-1]) == ("my snapshots/Name", "my snapshots/Whole")
    assert [shlex.split(line) for line in prepare.splitlines()] == [
        ["llava", "data", "prepare", f"my snapshots/{name}", "--out", "data"] for name in ("Name", "Whole")
    ]


@pytest.mark.parametrize("stage", STAGES)
def test_every_set_of_the_stages_is_fetched(stage):
    entries = mixture_entries(ROOT / f"scripts/train/mixtures/{stage}.yaml")
    patterns = {}
    for command in download_commands(entries, "to"):
        included = [word for before, word in pairwise(command) if before == "--include"]
        patterns[command[2]] = included or ["*"]
    for entry in entries:
        stored = f"{entry.hub.config}/train-00000-of-00001.parquet" if entry.hub.config else "any.json"
        assert sum(fnmatch(stored, pattern) for pattern in patterns[entry.hub.repo]) == 1
        assert entry.file.parent.name == entry.hub.repo.partition("/")[2]  # where prepare writes it


def test_a_mixture_without_hub_keys_has_nothing_to_fetch(tmp_path, capsys):
    (tmp_path / "mixture.yaml").write_text("datasets: [{json_path: a.json}]")
    assert main(["data", "download", str(tmp_path / "mixture.yaml")]) == 2
    assert "no entry of the mixture has the key 'hub'" in capsys.readouterr().err


@pytest.fixture
def fake_hf(tmp_path, monkeypatch):
    """A program hf that writes down its arguments, and fails where a repository is called Broken."""
    program = tmp_path / "bin/hf"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\ncase "$2" in */Broken) exit 3;; esac\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return tmp_path / "calls"


def test_the_commands_are_run(mixture, fake_hf, monkeypatch, capsys):
    monkeypatch.setattr(download, "_check_network", lambda: None)
    assert main(["data", "download", mixture, "--to", "there", "--run"]) == 0
    assert fake_hf.read_text().splitlines() == [
        "download owner/Name --repo-type dataset --include a(b,c)/* --include b/* --local-dir there/Name",
        "download owner/Whole --repo-type dataset --local-dir there/Whole",
    ]


def test_a_failed_command_ends_the_download(fake_hf, monkeypatch):
    monkeypatch.setattr(download, "_check_network", lambda: None)
    with pytest.raises(LlavaError, match=r"^hf download owner/Broken ended with status 3; the same command goes on"):
        download.run_commands([["hf", "download", "owner/Broken"], ["hf", "download", "owner/Name"]])
    assert fake_hf.read_text().splitlines() == ["download owner/Broken"]


def test_without_a_network_there_is_one_clear_line(mixture, fake_hf, monkeypatch, capsys):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # the discard port, where nothing listens
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    assert main(["data", "download", mixture, "--run"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: the hub at http://127.0.0.1:9 cannot be reached (")
    assert "run the printed commands where there is a network" in error
    assert error.count("\n") == 1
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert main(["data", "download", mixture, "--run"]) == 2
    assert capsys.readouterr().err.startswith("error: HF_HUB_OFFLINE is set: ")
    assert not fake_hf.exists()


def test_without_the_program_there_is_one_clear_line(mixture, monkeypatch, capsys):
    monkeypatch.setenv("PATH", "/nowhere")
    assert main(["data", "download", mixture, "--run"]) == 2
    assert capsys.readouterr().err == "error: the program hf is not installed: pip install 'huggingface_hub>=1.0'\n"
