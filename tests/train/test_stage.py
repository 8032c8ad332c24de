"""Three stages in one process, each from the one before, and what a run leaves behind."""

import json
import os
import shutil
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from llava.data.schema import Dialogue, Turn
from llava.engine.engine import Engine
from llava.errors import LlavaError
from llava.train import stage as stage_module
from llava.train.folders.interim import checkpoints_folder
from llava.train.recipe.checks import check_data, check_recipe
from llava.train.stage import prepare, run_stage

ARMS = ("baseline", "manager", "grid", "grid_manager")


def run(recipe) -> Path:
    check_recipe(recipe, 1, dry_run=False)
    check_data(recipe)
    run_stage(recipe)
    return Path(recipe.run.output_dir)


@pytest.mark.parametrize("arm", ARMS)
def test_three_stages(tiny_recipe, make_image, arm, capsys):
    folders = [run(tiny_recipe("1", arm))]
    for stage in ("1_5", "2"):
        folders.append(run(tiny_recipe(stage, arm, **{"model.start_from": str(folders[-1])})))
    assert [path.name for path in sorted(folders[0].parent.iterdir())] == ["stage1", "stage1_5", "stage2"]

    weights = [load_file(folder / "model.safetensors") for folder in folders]
    for before, after in pairwise(weights):  # also the newline: square images have none, but a video ends with one
        moved = {name for name in before if not torch.equal(before[name], after[name])}
        assert moved == {name for name in before if "post_layernorm" not in name}
    assert any("fusion" in name for name in weights[-1]) == ("manager" in arm)

    for number, folder in enumerate(folders):
        config = json.loads((folder / "config.json").read_text())
        assert config["tiling"]["mode"] == ("anyres" if "grid" in arm and number else "square")
        assert "use_cache" not in config
    engine = Engine.from_pretrained(str(folders[-1]), device="cpu")
    answers = engine.generate([Dialogue([Turn("human", "What is it?")], [make_image()])], max_new_tokens=3)
    assert len(answers) == 1
    assert "saved" in capsys.readouterr().out


def test_stage_1_moves_the_projector_and_the_managers_alone(tiny_recipe):
    recipe = tiny_recipe("1")
    torch.manual_seed(0)
    stage = prepare(recipe)
    before = {name: parameter.clone() for name, parameter in stage.trainer.model.named_parameters()}
    stage.trainer.train()
    for name, parameter in stage.trainer.model.named_parameters():
        trained = name.startswith(("model.multi_modal_projector.", "model.fusion."))
        assert torch.equal(parameter, before[name]) != trained, name


@pytest.mark.parametrize("deterministic", [True, False])
def test_kernels_that_add_in_one_order(tiny_recipe, monkeypatch, deterministic):
    for name in ("CUBLAS_WORKSPACE_CONFIG", "FLASH_ATTENTION_DETERMINISTIC"):
        monkeypatch.setenv(name, "x")  # put back afterwards
        monkeypatch.delenv(name)
    try:
        stage = prepare(tiny_recipe("1", **{"run.deterministic": deterministic, "optim.max_steps": 1}))
        assert torch.are_deterministic_algorithms_enabled() == deterministic
        assert os.environ.get("CUBLAS_WORKSPACE_CONFIG") == (":4096:8" if deterministic else None)
        assert os.environ.get("FLASH_ATTENTION_DETERMINISTIC") == ("1" if deterministic else None)
        stage.trainer.train()
    finally:
        torch.use_deterministic_algorithms(False)


def test_the_folder_tells_how_it_was_made(tiny_recipe):
    recipe = tiny_recipe("1", **{"optim.max_steps": 2})
    folder = run(recipe)
    record = json.loads((folder / "run.json").read_text())
    assert record["recipe"] == recipe.to_dict()
    assert record["plan"] == {"samples": 16, "processes": 1, "accumulation": 2, "steps": 2, "tokens": 8 * (16 + 15)}
    assert record["steps"] == 2
    assert record["tokens_seen"] > 0
    assert record["train_loss"] > 0
    assert [row["component"] for row in record["components"] if row["trainable"]] == ["projector", "fusion"]
    assert record["mixture"][0]["taken"] == 16
    assert set(record["versions"]) >= {"python", "torch", "transformers"}
    assert AutoProcessor.from_pretrained(folder).image_token == "<image>"
    assert AutoModelForImageTextToText.from_pretrained(folder).config.model_type == "llava_ov_manager"
    assert json.loads((folder / "trainer_state.json").read_text())["global_step"] == 2


@pytest.mark.parametrize("workers", [0, 1])
def test_skipped_samples_are_counted(tiny_recipe, data_folder, tmp_path, capsys, workers):
    shutil.copytree(data_folder, tmp_path / "images")
    (tmp_path / "images/3.png").unlink()
    (tmp_path / "images/8.png").unlink()
    images = {"data.image_folder": f"{tmp_path}/images", "data.on_bad_sample": "skip", "data.workers": workers}
    folder = run(tiny_recipe("1", **images))
    assert json.loads((folder / "run.json").read_text())["skipped"] == 2
    assert capsys.readouterr().out.endswith(f"saved {folder}; 2 bad samples were skipped\n")


def test_what_will_happen_is_printed_first(tiny_recipe, capsys):
    prepare(tiny_recipe("1"))
    printed = capsys.readouterr().out
    for line in ("optim.lr ", "samples     16 x 1 epochs", "attention   sdpa", "component ", "16 samples"):
        assert line in printed


@pytest.mark.parametrize(("warmup", "epochs", "told"), [(0.03, 0.1, True), (0, 0.1, False), (0.03, 1, False)])
def test_a_run_of_one_step_of_warm_up_learns_nothing_and_is_told(tiny_recipe, capsys, warmup, epochs, told):
    stage = prepare(tiny_recipe("1", **{"optim.warmup": warmup, "optim.epochs": epochs}))
    before = {name: parameter.clone() for name, parameter in stage.trainer.model.named_parameters()}
    stage.trainer.train()
    unmoved = all(torch.equal(parameter, before[name]) for name, parameter in stage.trainer.model.named_parameters())
    assert unmoved == told
    line = "note: the only step is warm-up, at a rate of 0: nothing is learned; pass --optim.warmup 0\n"
    assert (line in capsys.readouterr().out) == told


def test_the_same_seed_gives_the_same_run(tiny_recipe, tmp_path):
    folders = [run(tiny_recipe("1", **{"run.output_dir": f"{tmp_path}/{name}"})) for name in "ab"]
    one, two = (load_file(folder / "model.safetensors") for folder in folders)
    assert all(torch.equal(one[name], two[name]) for name in one)
    other = load_file(run(tiny_recipe("1", **{"run.output_dir": f"{tmp_path}/c", "run.seed": 7})) / "model.safetensors")
    assert not torch.equal(one["model.fusion.layer_embedding"], other["model.fusion.layer_embedding"])


@pytest.mark.parametrize(("number", "local", "kept"), [("0", "0", False), ("1", "0", False), ("1", "1", True)])
def test_the_first_rank_of_each_host_clears_what_a_killed_one_left(tiny_recipe, monkeypatch, number, local, kept):
    """Where hosts share no disk, rank 0 does not see it."""
    recipe = tiny_recipe("1")
    stale = checkpoints_folder(recipe.run.output_dir) / "writing"
    stale.mkdir(parents=True)
    (stale / "half").touch()

    def end(seconds):
        raise InterruptedError

    monkeypatch.setattr(stage_module, "meet", end)  # the others are not there
    monkeypatch.setenv("RANK", number)
    monkeypatch.setenv("LOCAL_RANK", local)
    with pytest.raises(InterruptedError):
        prepare(recipe)
    assert stale.exists() == kept


def test_deepspeed_without_torchrun_is_one_clear_line(tiny_recipe, monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(LlavaError, match=r"run\.deepspeed needs torchrun"):
        prepare(tiny_recipe("1", **{"run.deepspeed": "scripts/train/deepspeed/zero3.json"}))


def test_tensorboard_logs_lie_in_the_checkpoint(tiny_recipe):
    folder = run(tiny_recipe("1", **{"run.report_to": "tensorboard", "optim.max_steps": 1}))
    assert list(folder.glob("runs/*/events.out.tfevents.*"))
