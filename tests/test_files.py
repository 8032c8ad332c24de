"""Who may read what is written follows from the umask alone, whichever library writes it."""

import os
import shutil
import stat
from pathlib import Path

import pytest
from transformers import TrainerState

from llava.cli import main
from llava.demo.pretrain import pretrain_language_model, pretrain_tower
from llava.files import follow_umask
from llava.train.folders.interim import finish_checkpoint, start_checkpoint
from llava.train.folders.stage_folder import MANIFEST, start_working_folder, write_checkpoint, write_model

UMASKS = {0o022: 0o644, 0o002: 0o664, 0o077: 0o600, 0o027: 0o640}


@pytest.fixture(params=UMASKS, ids=oct)
def mode(request):
    """What a new file's mode is under each umask."""
    before = os.umask(request.param)
    yield UMASKS[request.param]
    os.umask(before)


def check_modes(folder: Path, mode: int, *names: str) -> None:
    files = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    assert set(names) <= set(files)
    assert {name: oct(stat.S_IMODE(path.stat().st_mode)) for name, path in files.items()} == dict.fromkeys(
        files, oct(mode)
    )


def test_a_stages_checkpoint(make_model, make_processor, tmp_path, mode):
    model, output = make_model(), f"{tmp_path}/out"
    adapter = start_working_folder(output) / "adapter"
    adapter.mkdir()
    (adapter / "adapter_model.safetensors").touch(0o600)
    write_checkpoint(model, make_processor(), model.state_dict(), TrainerState(), {}, output)
    check_modes(Path(output), mode, "model.safetensors", "trainer_state.json", MANIFEST)
    check_modes(Path(output, "adapter"), mode, "adapter_model.safetensors")


def test_an_interim_checkpoint(make_model, make_processor, tmp_path, mode):
    model, writing = make_model(), start_checkpoint(f"{tmp_path}/out")
    write_model(model, make_processor(), model.state_dict(), writing / "checkpoint-3")
    finished = finish_checkpoint(writing, {"step": 3, "recipe": {}}, keep_last=1)
    check_modes(finished, mode, "model.safetensors", "complete.json")


def test_what_convert_writes(tiny_model_dir, tmp_path, mode):
    start = shutil.copytree(tiny_model_dir, tmp_path / "start")
    for path in start.iterdir():
        path.chmod(0o600)  # as safetensors wrote them
    assert main(["convert", "export", str(start), "--format", "remote_code", "--out", f"{tmp_path}/out"]) == 0
    check_modes(tmp_path / "out", mode, "config.json", "model.safetensors")


def test_the_demos_models(tmp_path, mode):
    pretrain_tower(tmp_path / "siglip", steps=1, batch_size=1)
    check_modes(tmp_path / "siglip", mode, "model.safetensors")
    pretrain_language_model(tmp_path / "qwen2", steps=1, batch_size=1)
    check_modes(tmp_path / "qwen2", mode, "model.safetensors", "tokenizer.json")


def test_a_links_target_stays_as_it_is(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.touch(0o600)
    folder = tmp_path / "out"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep/weights").touch(0o600)
    (folder / "link").symlink_to(elsewhere)
    follow_umask(folder)
    assert stat.S_IMODE(elsewhere.stat().st_mode) == 0o600
    assert stat.S_IMODE((folder / "deep/weights").stat().st_mode) != 0o600
    assert sorted(path.name for path in folder.iterdir()) == ["deep", "link"]
