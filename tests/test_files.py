"""Files and folders are whole or not there, and who may read them follows from the umask alone."""

import hashlib
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import TrainerState

from llava.checkpoint.folder import MANIFEST
from llava.cli import main
from llava.demo.pretrain import pretrain_language_model, pretrain_tower
from llava.files import existing_folder, file_hash, follow_umask, put_back, sync_files, whole_file, whole_folder
from llava.train.folders.interim import finish_checkpoint, start_checkpoint
from llava.train.folders.stage_folder import start_working_folder, write_checkpoint, write_model

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


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def killed(call: str, body: str, tmp_path: Path) -> None:
    """Runs `with CALL as made:` and `body` in a process that is killed where the body says `kill()`."""
    script = f"""
import os, signal
from llava.files import *
kill = lambda: os.kill(os.getpid(), signal.SIGKILL)
with {call} as made:
    {body}
"""
    assert subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=False).returncode == -9


@pytest.mark.parametrize("before", [None, "old"])
def test_a_file_is_there_when_its_block_ends(tmp_path, before):
    path = tmp_path / "file"
    if before:
        path.write_text(before)
    with whole_file(path, sync=True) as stream:
        stream.write("n\u00e9w")
        stream.flush()
        assert (path.read_text() if before else path.exists()) == (before or False)
    assert path.read_bytes() == "n\u00e9w".encode()
    with whole_file(path, "wb") as stream:
        stream.write(b"\xff")
    assert path.read_bytes() == b"\xff"
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_an_error_leaves_the_file_and_the_folder_as_they_were(tmp_path, error):
    (tmp_path / "file").write_text("old")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/old").touch()

    def fail():
        with whole_file(tmp_path / "file") as stream, whole_folder(tmp_path / "folder") as folder:
            stream.write("new")
            (folder / "new").touch()
            raise error

    with pytest.raises(type(error)):
        fail()
    assert (tmp_path / "file").read_text() == "old"
    assert names(tmp_path / "folder") == ["old"]
    assert names(tmp_path) == ["file", "folder"]


def test_a_file_that_cannot_be_renamed_leaves_nothing(tmp_path):
    (tmp_path / "file").mkdir()
    with pytest.raises(IsADirectoryError), whole_file(tmp_path / "file"):
        pass
    with pytest.raises(FileNotFoundError), whole_file(tmp_path / "nowhere/file"):
        pass
    assert names(tmp_path) == ["file"]


def test_a_killed_writer_leaves_what_was_there(tmp_path):
    (tmp_path / "file").write_text("old")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/old").touch()
    killed("whole_file('file')", "made.write('new'); made.flush(); kill()", tmp_path)
    killed("whole_folder('folder')", "(made / 'new').touch(); kill()", tmp_path)
    assert (tmp_path / "file").read_text() == "old"
    assert names(tmp_path / "folder") == ["old"]
    with whole_file(tmp_path / "file"), whole_folder(tmp_path / "folder") as folder:
        assert names(folder) == [], "what the killed one left is gone"
    assert names(tmp_path) == ["file", "folder"]


def test_a_folder_takes_the_place_of_an_older_one(tmp_path):
    for name in ("first", "second"):
        with whole_folder(tmp_path / "folder", working=tmp_path / "deep/.working") as folder:
            assert folder == tmp_path / "deep/.working"
            (folder / name).touch()
    assert names(tmp_path / "folder") == ["second"]
    assert names(tmp_path) == ["deep", "folder"]
    assert names(tmp_path / "deep") == []


def test_a_writer_killed_between_the_renames_loses_nothing(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/old").touch()
    second = "rename = Path.rename; Path.rename = lambda path, to: kill() if 'unfin' in path.name else rename(path, to)"
    killed("whole_folder('folder')", second, tmp_path)
    assert names(tmp_path) == ["folder.replaced", "folder.unfinished"]
    put_back(tmp_path / "folder")
    assert names(tmp_path / "folder") == ["old"]
    put_back(tmp_path / "folder")  # once is enough
    assert names(tmp_path) == ["folder", "folder.unfinished"]


def test_sizes_hashes_and_places(tmp_path):
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/b/file").write_bytes(b"12345")
    (tmp_path / "a/empty").touch()
    assert sync_files(tmp_path / "a") == {"b/file": 5, "empty": 0}
    assert file_hash(tmp_path / "a/b/file") == hashlib.sha256(b"12345").hexdigest()
    assert existing_folder(tmp_path / "a/b") == tmp_path / "a/b"
    assert existing_folder(tmp_path / "a/c/d/e") == tmp_path / "a"
