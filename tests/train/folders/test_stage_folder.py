"""Folders that a stage starts from and ends in: complete or refused, replaced whole or not at all."""

import json
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from transformers import TrainerState

from llava.checkpoint.folder import NEEDED_PROCESSOR_FILES, check_folder
from llava.errors import LlavaError
from llava.train.folders.stage_folder import (
    check_disk,
    check_output_folder,
    publish,
    start_working_folder,
    trained_arm,
    working_folder,
    write_checkpoint,
)
from llava.train.mllm.components import split_components


def check(folder):
    check_folder(folder, "model.start_from", files=NEEDED_PROCESSOR_FILES, weights=True)


def test_what_stands_at_the_output_is_not_replaced_unasked(tiny_recipe, tmp_path):
    output = tmp_path / "out"
    recipe = tiny_recipe("1", **{"run.output_dir": str(output)})
    check_output_folder(recipe)
    output.mkdir()
    check_output_folder(recipe)
    (output / "thesis.tex").touch()
    overwriting = tiny_recipe("1", **{"run.output_dir": str(output), "run.overwrite": True})
    for asked in (recipe, overwriting):
        with pytest.raises(LlavaError, match="is not a checkpoint of a stage"):
            check_output_folder(asked)
    (output / "run.json").touch()
    with pytest.raises(LlavaError, match=r"--run\.overwrite true"):
        check_output_folder(recipe)
    check_output_folder(overwriting)
    with pytest.raises(LlavaError, match=r"is also model.start_from"):
        check_output_folder(tiny_recipe("2", **{"run.output_dir": "a/../b", "model.start_from": "b"}))


def test_a_full_disk_is_found_before(make_model, tiny_recipe, tmp_path, monkeypatch):
    components = split_components(make_model(), tiny_recipe())
    check_disk(str(tmp_path / "not" / "there" / "yet"), components)
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(100 * 2**20))
    with pytest.raises(LlavaError, match=r"a checkpoint needs 10[56].\d MB, 104.9 MB are free"):
        check_disk(str(tmp_path / "out"), components)


def write(model, processor, output, **manifest):
    start_working_folder(output)
    write_checkpoint(model, processor, model.state_dict(), TrainerState(global_step=3), manifest, output)


def test_a_checkpoint_is_self_contained(make_model, make_processor, tmp_path):
    output = str(tmp_path / "out")
    write(make_model(), make_processor(), output, train_loss=1.5)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    check(output)
    assert json.loads((tmp_path / "out/run.json").read_text()) == {"train_loss": 1.5}
    assert TrainerState.load_from_json(f"{output}/trainer_state.json").global_step == 3


def test_what_was_logged_stands_beside_it_as_a_table(make_model, make_processor, tmp_path):
    output = str(tmp_path / "out")
    start_working_folder(output)
    model, state = make_model(), TrainerState(global_step=2)
    state.log_history = [{"loss": 1.5, "epoch": 0.5, "step": 1}, {"eval_loss": 2.25, "epoch": 1.0, "step": 2}]
    write_checkpoint(model, make_processor(), model.state_dict(), state, {}, output)
    assert (tmp_path / "out/log.csv").read_text() == "step,epoch,loss,eval_loss\n1,0.5,1.5,\n2,1.0,,2.25\n"


def test_a_checkpoint_knows_its_arm(make_model, make_processor, tiny_recipe, tiny_model_dir, tmp_path):
    output = tmp_path / "out"
    write(make_model(), make_processor(), str(output), recipe=tiny_recipe(arm="grid").to_dict())
    assert (trained_arm(output), trained_arm(tiny_model_dir)) == ("grid", None)


def test_a_newer_checkpoint_takes_the_place_whole(make_model, make_processor, tmp_path):
    output = str(tmp_path / "out")
    write(make_model(), make_processor(), output, run=1)
    (tmp_path / "out/only_in_the_first").touch()
    write(make_model(), make_processor(), output, run=2)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert json.loads((tmp_path / "out/run.json").read_text()) == {"run": 2}
    assert not (tmp_path / "out/only_in_the_first").exists()


@pytest.mark.parametrize("failing", ["save_pretrained", "save_to_json"])
def test_a_failed_write_leaves_the_old_checkpoint_and_nothing_else(
    make_model, make_processor, tmp_path, monkeypatch, failing
):
    output, model = str(tmp_path / "out"), make_model()
    write(model, make_processor(), output, run=1)
    owner = model if failing == "save_pretrained" else TrainerState

    def full_disk(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(owner, failing, full_disk)
    with pytest.raises(LlavaError, match=r"could not be written: .*No space left on device"):
        write(model, make_processor(), output, run=2)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert json.loads((tmp_path / "out/run.json").read_text()) == {"run": 1}


def test_a_run_killed_while_writing_leaves_the_old_checkpoint(make_model, make_processor, tmp_path):
    output = str(tmp_path / "out")
    write(make_model(), make_processor(), output, run=1)
    start_working_folder(output)
    (working_folder(output) / "model.safetensors").write_bytes(b"half")
    check(output)
    assert not any(start_working_folder(output).iterdir())


def test_a_run_killed_between_the_renames_loses_nothing(make_model, make_processor, tmp_path, monkeypatch):
    output = str(tmp_path / "out")
    write(make_model(), make_processor(), output, run=1)
    start_working_folder(output)
    renames = []
    rename = Path.rename

    def killed_at_the_second(path, target):
        renames.append(path)
        if len(renames) == 2:
            raise KeyboardInterrupt
        return rename(path, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", killed_at_the_second)
        with pytest.raises(KeyboardInterrupt):
            publish(output)
    assert not (tmp_path / "out").exists()
    start_working_folder(output)
    assert json.loads((tmp_path / "out/run.json").read_text()) == {"run": 1}


def test_weights_survive_the_round_trip(make_model, make_processor, tmp_path):
    model = make_model()
    write(model, make_processor(), str(tmp_path / "out"))
    loaded = type(model).from_pretrained(tmp_path / "out")
    for (name, saved), (_, found) in zip(model.named_parameters(), loaded.named_parameters()):
        assert torch.equal(saved, found), name
