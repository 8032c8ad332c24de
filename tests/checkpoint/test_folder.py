"""A model folder: whole, or refused in one clear line; known by its content."""

import hashlib
import json
import shutil
import subprocess
import sys

import pytest

from llava.checkpoint.folder import (
    ADAPTER_FILES,
    NEEDED_PROCESSOR_FILES,
    TOWER_FOLDER_TYPES,
    check_folder,
    identity_files,
    weight_files,
    weights_id,
)
from llava.constants import LANGUAGE_MODEL_TYPES
from llava.errors import LlavaError
from llava.text_files import read_json


@pytest.fixture
def folder(tiny_model_dir, tmp_path):
    """A complete checkpoint that a test may break."""
    return shutil.copytree(tiny_model_dir, tmp_path / "start")


def check(folder):
    check_folder(folder, "model.start_from", files=NEEDED_PROCESSOR_FILES, weights=True)


def test_a_complete_folder_passes(folder):
    check(folder)


def _cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def _as_file(path):
    shutil.rmtree(path)
    path.touch()


def _adapters_alone(path):
    (path / "config.json").unlink()
    (path / "adapter_config.json").touch()


def _half_an_adapter(path):
    (path / "adapter").mkdir()
    (path / "adapter/adapter_config.json").touch()


@pytest.mark.parametrize(
    ("breaking", "message"),
    [
        (shutil.rmtree, "no such model folder"),
        (_as_file, "a file, not a model folder"),
        (lambda f: (f / "config.json").unlink(), r"not a model folder \(no config.json\)"),
        (_adapters_alone, r"\(no config.json\); it holds adapters alone, their model is "),
        (lambda f: (f / "tokenizer.json").unlink(), "incomplete, it has no tokenizer.json"),
        (lambda f: (f / "model.safetensors").unlink(), "incomplete, it has no model.safetensors"),
        (lambda f: _cut(f / "model.safetensors"), "model.safetensors is missing or cut off"),
        (_half_an_adapter, "incomplete, its adapter has no adapter_model.safetensors"),
        (lambda f: (f / "config.json").write_text("{"), "not readable as JSON"),
        (lambda f: (f / "config.json").write_text("[]"), "expected a JSON object, found list"),
        (lambda f: (f / "config.json").write_text("{}"), r"not a model configuration \(no model_type\)"),
        (lambda f: (f / "config.json").write_text('{"model_type": "qwen2"}'), "of type 'qwen2'; expected llava_ov"),
        (
            lambda f: (f / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-1.safetensors"}}'),
            "model-1.safetensors is missing or cut off",
        ),
    ],
)
def test_a_broken_folder_is_one_clear_line(folder, breaking, message):
    breaking(folder)
    with pytest.raises(LlavaError, match=message) as caught:
        check(folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_checkpoints_of_other_formats_point_to_the_import(tmp_path, monkeypatch):
    for name in ("llava", "llava_qwen", "llava_qwen_manager", "llava_onevision"):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": name}))
        with pytest.raises(LlavaError) as caught:
            check_folder(tmp_path)
        assert str(caught.value) == (
            f"{tmp_path}: holds a model of type {name!r}; expected llava_ov_manager; "
            f"llava convert import {tmp_path} --out DIR makes one of it"
        )
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        LlavaError, match=r"if it is a model on the hub: llava convert import owner/name-0\.5b --out DIR"
    ):
        check_folder("owner/name-0.5b")
    (tmp_path / "run").mkdir()
    (tmp_path / "config.json").rename(tmp_path / "run/config.json")
    with pytest.raises(LlavaError, match="name one of the folders in it: run"):
        check_folder(tmp_path)


def test_the_parts_of_a_model_are_not_to_be_imported(tmp_path, monkeypatch):
    """What is asked for is a tower or a language model: the import makes neither."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llava_qwen"}')
    for types in (TOWER_FOLDER_TYPES, LANGUAGE_MODEL_TYPES):
        for path, message in (
            (tmp_path, f"x {tmp_path}: holds a model of type 'llava_qwen'; expected {' or '.join(types)}"),
            ("owner/name", "x owner/name: no such model folder"),
        ):
            with pytest.raises(LlavaError) as caught:
                check_folder(path, "x", types)
            assert str(caught.value) == message


def test_a_file_that_cannot_be_read_is_said(tmp_path):
    with pytest.raises(LlavaError, match=r"config.json: cannot be read \(No such file or directory\)"):
        read_json(tmp_path / "config.json")


def test_weights_are_found_in_every_layout(tmp_path):
    def names():
        return [path.name for path in weight_files(tmp_path)]

    (tmp_path / "model.bin").touch()
    assert weight_files(tmp_path / "model.bin") == [tmp_path / "model.bin"]
    index = {"weight_map": {"x": "b.bin", "y": "a.bin", "z": "b.bin"}}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    with pytest.raises(LlavaError, match=r"2 of 2 files do not exist, first a\.bin"):
        names()
    for name in "ab":
        (tmp_path / f"{name}.bin").touch()
    assert names() == ["a.bin", "b.bin"]
    (tmp_path / "model.safetensors").touch()
    assert names() == ["model.safetensors"]


def test_a_model_is_known_by_the_files_that_its_answers_depend_on(folder):
    """Wherever it lies. By an independent computation: answers that were stored before stay valid."""
    (folder / "run.json").write_text("{}")  # none of them
    (folder / "generation_config.json").write_text("{}")
    (folder / "adapter").mkdir()
    for name in ADAPTER_FILES:
        (folder / "adapter" / name).write_text(name)
    names = ["adapter/adapter_config.json", "adapter/adapter_model.safetensors", "config.json", "model.safetensors"]
    names += ["processor_config.json", "tokenizer.json", "tokenizer_config.json"]
    assert [str(path.relative_to(folder)) for path in identity_files(folder)] == names
    lines = [f"{name} {hashlib.sha256((folder / name).read_bytes()).hexdigest()}\n" for name in names]
    assert weights_id(folder) == hashlib.sha256("".join(lines).encode()).hexdigest()[:12]


def test_a_model_is_known_by_weights_adapters_sizes_and_tiling(tiny_model_dir, tmp_path):
    folder = shutil.copytree(tiny_model_dir, tmp_path / "model")
    expected = weights_id(folder)
    assert len(expected) == 12
    assert expected == weights_id(tiny_model_dir), "wherever it lies"
    (folder / "trainer_state.json").write_text("{}")
    (folder / "optimizer.pt").write_bytes(b"1")
    assert weights_id(folder) == expected
    seen = {expected}
    (folder / "adapter").mkdir()
    changes = [*sorted(folder.glob("*.safetensors")), *sorted(folder.glob("*config.json"))]
    changes += [folder / "tokenizer.json", folder / "adapter" / "adapter_model.safetensors"]
    changes += [folder / "adapter" / "adapter_config.json"]
    assert len(changes) >= 7
    for file in changes:
        if file.name == "generation_config.json":  # the engine makes its own
            continue
        before = file.read_bytes() if file.exists() else None
        file.write_bytes((before or b"") + b" ")
        seen.add(weights_id(folder))
        if before is None:
            file.unlink()
        else:
            file.write_bytes(before)
        assert weights_id(folder) == expected, file
    assert len(seen) == len([file for file in changes if file.name != "generation_config.json"]) + 1


def test_checks_import_no_torch():
    script = "import sys, llava.checkpoint.folder as f; f.check_folder('x', 'y')"
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", script], capture_output=True, text=True, check=False
    )
    assert done.stderr.endswith("LlavaError: y x: no such model folder\n")
    assert "| torch" not in done.stderr
    assert "llava.checkpoint.folder" in done.stderr
