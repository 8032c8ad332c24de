"""Checkpoint folders to export; folders to import, as their publishers save them; both commands."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from llava.arguments import ArgumentParser
from llava.cli import main
from llava.convert.export import add_arguments, run
from tests.conftest import GRID
from tests.paths import GOLDEN_DIR

WEIGHTS = GOLDEN_DIR / "weights"
PLACEHOLDER = 503  # the id that <image> gets in the golden tokenizer


def released_state(variant: str) -> dict[str, torch.Tensor]:
    """The full state of a golden model under its released names."""
    return {**load_file(WEIGHTS / "base.safetensors"), **load_file(WEIGHTS / f"{variant}.safetensors")}


def save_state(state: dict[str, torch.Tensor], folder: Path, layout: str = "safetensors") -> None:
    """Writes weights as `safetensors` or `bin`, whole or, with `_sharded`, in three files and an index."""
    kind, _, sharded = layout.partition("_")
    stem, suffix = ("model", "safetensors") if kind == "safetensors" else ("pytorch_model", "bin")
    write = save_file if kind == "safetensors" else torch.save
    if not sharded:
        write(state, folder / f"{stem}.{suffix}")
        return
    names = sorted(state)
    files = {f"{stem}-{k + 1:05}-of-00003.{suffix}": names[k::3] for k in range(3)}
    for file, members in files.items():
        write({name: state[name] for name in members}, folder / file)
    index = {"metadata": {}, "weight_map": {name: file for file, members in files.items() for name in members}}
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps(index))


@pytest.fixture(scope="session")
def save_model(make_model, make_processor):
    """A function: folder, and what make_model takes, to the model saved there, no weight of its fusion as it begins."""

    def save(folder, tiling=GRID, fusion=None, dtype=torch.float32, **text):
        model = make_model(tiling, fusion, **text).to(dtype)
        for parameter in model.model.fusion.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        model.save_pretrained(folder)
        make_processor(model.config.tiling).save_pretrained(folder)
        return model

    return save


@pytest.fixture(scope="session")
def export():
    """A function: the command's arguments to its exit status."""

    def call(*arguments) -> int:
        parser = ArgumentParser()
        add_arguments(parser)
        return run(parser.parse_args([str(argument) for argument in arguments]))

    return call


@pytest.fixture
def hub(monkeypatch):
    """What was asked of the hub, in order; a name of `refusing` makes that call fail."""
    asked = SimpleNamespace(calls=[], refusing=set(), token="hf_x")

    class Hub:
        def __getattr__(self, name):
            def call(*positional, **named):
                asked.calls.append((name, positional, named))
                if name in asked.refusing:
                    raise OSError("401 Unauthorized")
                return "https://huggingface.co/me/model"

            return call

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: asked.token)
    return asked


@pytest.fixture
def tower_config(tmp_path) -> Path:
    """A folder with the golden tower's config.json, as it is built: one layer more than is used."""
    folder = tmp_path / "tiny-siglip"
    folder.mkdir()
    sizes = json.loads((WEIGHTS / "base.json").read_text())["siglip"]
    (folder / "config.json").write_text(json.dumps({"model_type": "siglip_vision_model", **sizes}))
    return folder


@pytest.fixture
def make_released(tmp_path):
    """A function: golden variant, fields of config.json to change, weights and layout to a released folder."""

    def make(variant: str = "base", layout: str = "safetensors", state=None, **fields) -> Path:
        folder = tmp_path / "released"
        shutil.copytree(GOLDEN_DIR / "tokenizer", folder)
        config = json.loads((WEIGHTS / f"{variant}.json").read_text())["config"]
        (folder / "config.json").write_text(json.dumps({**config, **fields}))
        save_state(released_state(variant) if state is None else state, folder, layout)
        return folder

    return make


@pytest.fixture
def convert(tmp_path, capsys):
    """A function: arguments of `llava convert import` to (folder written, text printed); fails where it fails."""

    def run(*arguments, out: str = "converted") -> tuple[Path, str]:
        status = main(["convert", "import", *map(str, arguments), "--out", str(tmp_path / out)])
        printed = capsys.readouterr()
        assert status == 0, printed.err
        return tmp_path / out, printed.out

    return run


@pytest.fixture
def refused(tmp_path, capsys):
    """A function: arguments of `llava convert import` to its one error line; asserts that nothing is left behind."""

    def run(*arguments, out: str = "converted") -> str:
        capsys.readouterr()
        before = sorted(tmp_path.rglob("*"))
        assert main(["convert", "import", *map(str, arguments), "--out", str(tmp_path / out)]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: "), error
        assert error.count("\n") == 1, error
        assert sorted(tmp_path.rglob("*")) == before
        return error

    return run


def load_strictly(folder: Path, **options):
    """The converted model, and nothing missing, unexpected or of another shape in its folder."""
    from transformers import AutoModelForImageTextToText

    import llava.mllm  # noqa: F401, registers the model

    model, loading = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True, **options)
    assert not any(loading[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), loading
    return model.eval()
