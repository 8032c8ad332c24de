"""Everything that a user can get wrong about a stage is one LlavaError, raised before anything is loaded."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from llava.errors import LlavaError
from llava.train.recipe import checks
from llava.train.recipe.checks import check_data, check_recipe


def faults_of(recipe, world_size=1, dry_run=False) -> list[str]:
    """The faults that the check reports; empty when it passes."""
    try:
        check_recipe(recipe, world_size, dry_run)
    except LlavaError as error:
        first, *rest = str(error).splitlines()
        return [line.removeprefix("  - ") for line in rest] or [first]
    return []


def test_the_tiny_stage_1_is_without_fault(tiny_recipe):
    recipe = tiny_recipe("1")
    assert faults_of(recipe) == []
    check_data(recipe)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"model.start_from": "x"}, "model.start_from and model.vision_tower exclude each other"),
        ({"model.language_model": "none"}, "the model needs model.start_from, or model.vision_tower and"),
        ({"model.sizes": "absent.yaml"}, "absent.yaml: cannot be read"),
        (
            {"fusion.vision_layers": [1], "fusion.vision_start": 1},
            "fusion.vision_layers and fusion.vision_start exclude each other",
        ),
        (
            {"fusion.injection_layers": [1], "fusion.injection_start": 0},
            "fusion.injection_layers and fusion.injection_start exclude each other",
        ),
        (
            {"fusion.question": "released", "fusion.query": "self"},
            "fusion.question released is for no manager: fusion.query is self",
        ),
        (
            {"fusion.method": "sti", "tiling.aspect_ratio": "anyres", "tiling.pinpoints": "(1x1),...,(6x6)"},
            "fusion.method sti takes one crop an image, tiling.aspect_ratio anyres adds tiles",
        ),
        ({"fusion.interval": 0}, "fusion.interval must be at least 1; found 0"),
        ({"fusion.vision_interval": 0}, "fusion.vision_interval must be at least 1; found 0"),
        ({"components.projector.trained": False, "components.fusion.trained": False}, "nothing trains"),
        ({"components.projector.trained": False, "fusion.method": "none"}, "nothing trains"),
        ({"optim.lr": 10}, "optim.lr must be above 0 and at most 1; found 10.0"),
        ({"components.fusion.lr": 0}, "components.fusion.lr must be above 0 and at most 1; found 0.0"),
        ({"optim.warmup": -0.1}, "optim.warmup must lie between 0 and 1"),
        ({"optim.max_steps": 0}, "optim.max_steps must be at least 1; found 0"),
        ({"optim.batch_size": 0}, "optim.batch_size must be at least 1; found 0"),
        (
            {"optim.global_batch_size": 5},
            "global_batch_size 5 is not a multiple of optim.batch_size 2 times 1 processes",
        ),
        ({"tiling.aspect_ratio": "anyres_9"}, "unknown image_aspect_ratio 'anyres_9'"),
        ({"tiling.aspect_ratio": "anyres", "tiling.pinpoints": None}, "needs at least one pinpoint"),
        ({"tiling.pinpoints": [[1, 2, 3]]}, "tiling.pinpoints must be pairs"),
        ({"data.mixture": "absent.yaml"}, "absent.yaml cannot be read"),
        ({"run.deepspeed": "absent.json"}, "run.deepspeed absent.json: cannot be read"),
    ],
)
@pytest.mark.parametrize("dry_run", [False, True])
def test_faults_that_also_stop_a_dry_run(tiny_recipe, changes, fault, dry_run):
    found = faults_of(tiny_recipe("1", **changes), dry_run=dry_run)
    assert any(fault in line for line in found), found


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"model.vision_tower": "absent"}, "model.vision_tower absent: no such model folder"),
        ({"data.image_folder": "absent"}, "data.image_folder absent is not a folder"),
    ],
)
def test_missing_folders_stop_training_but_no_dry_run(tiny_recipe, changes, fault):
    assert faults_of(tiny_recipe("1", **changes)) == [fault]
    assert faults_of(tiny_recipe("1", **changes), dry_run=True) == []


def test_a_missing_mixture_is_one_fault_beside_all_missing_folders(tiny_recipe):
    gone = {
        "data.mixture": "gone.yaml",
        "data.image_folder": "nowhere",
        "eval.data": "gone.yaml",
        "eval.image_folder": "neither",
        "model.vision_tower": "absent",
        "model.language_model": "lost",
    }
    assert faults_of(tiny_recipe("1", **gone)) == [
        "model.vision_tower absent: no such model folder",
        "model.language_model lost: no such model folder",
        "mixture gone.yaml cannot be read: No such file or directory",
        "data.image_folder nowhere is not a folder",
        "eval.image_folder neither is not a folder",
    ]


def test_faults_are_reported_together(tiny_recipe):
    changes = {"optim.lr": 2, "optim.batch_size": 3, "model.vision_tower": "absent", "data.image_folder": "nowhere"}
    assert len(faults_of(tiny_recipe("1", **changes), world_size=2)) == 4


@pytest.mark.parametrize("block", ["optimizer", "scheduler"])
def test_a_deepspeed_file_may_not_replace_the_optimizer(tiny_recipe, tmp_path, block):
    path = tmp_path / "zero.json"
    path.write_text(json.dumps({block: {}}))
    assert f"the block '{block}' would discard" in faults_of(tiny_recipe("1", **{"run.deepspeed": str(path)}))[0]
    path.write_text("{")
    assert "not readable as JSON" in faults_of(tiny_recipe("1", **{"run.deepspeed": str(path)}))[0]


def test_the_shipped_deepspeed_files(tiny_recipe):
    paths = sorted(Path("scripts/train/deepspeed").glob("*.json"))
    assert [path.stem for path in paths] == ["zero1", "zero2", "zero2_offload", "zero3", "zero3_offload"]
    for path in paths:
        assert faults_of(tiny_recipe("1", **{"run.deepspeed": str(path)})) == []
        config = json.loads(path.read_text())
        assert config["zero_optimization"]["stage"] == int(path.stem[4])
        assert ("offload_optimizer" in config["zero_optimization"]) == path.stem.endswith("offload")


def test_zero3_must_be_able_to_save(tiny_recipe, tmp_path):
    path = tmp_path / "zero.json"
    path.write_text(json.dumps({"zero_optimization": {"stage": 3}}))
    assert "no checkpoint can be saved" in faults_of(tiny_recipe("1", **{"run.deepspeed": str(path)}))[0]


@pytest.mark.parametrize(("config", "stage"), [({}, None), ({"zero_optimization": {"stage": 0}}, 0)])
def test_a_deepspeed_file_needs_zero(tiny_recipe, tmp_path, config, stage):
    """Without ZeRO DeepSpeed tells no gradient norm."""
    path = tmp_path / "plain.json"
    path.write_text(json.dumps(config))
    (fault,) = faults_of(tiny_recipe("1", **{"run.deepspeed": str(path)}))
    assert f"{path}: zero_optimization.stage is {stage}, needed 1, 2 or 3" in fault


def test_a_missing_package_is_named(tiny_recipe, monkeypatch):
    monkeypatch.setattr(checks, "find_spec", lambda name: None)
    monkeypatch.setattr("llava.engine.checks.find_spec", lambda name: None)
    changes = {"run.deepspeed": "scripts/train/deepspeed/zero2.json", "run.report_to": "wandb"}
    changes |= {"model.attention": "flash_attention_2"}
    found = faults_of(tiny_recipe("1", **changes))
    assert [line.split(":")[0] for line in found] == [
        "run.deepspeed needs the package deepspeed",
        "run.report_to needs the package wandb",
        "model.attention flash_attention_2 needs the package flash_attn",
    ]


def test_missing_data_files_are_counted(tiny_recipe, tmp_path, data_folder):
    shutil.copy(data_folder / "captions.yaml", tmp_path / "captions.yaml")
    found = faults_of(tiny_recipe("1", **{"data.mixture": f"{tmp_path}/captions.yaml"}))
    assert found == [f"data.mixture {tmp_path}/captions.yaml: 1 data files missing, first {tmp_path}/captions.json"]


def test_bad_images_are_found_before_training(tiny_recipe, data_folder, tmp_path):
    folder = tmp_path / "images"
    shutil.copytree(data_folder, folder)
    (folder / "0.png").write_bytes((folder / "0.png").read_bytes()[:-200])
    (folder / "1.png").unlink()
    recipe = tiny_recipe("1", **{"data.image_folder": str(folder)})
    with pytest.raises(LlavaError, match="2 of 16 samples are unusable") as caught:
        check_data(recipe)
    assert "captions.json row 1" in str(caught.value)
    assert "1.png does not exist" in str(caught.value)
    check_data(tiny_recipe("1", **{"data.image_folder": str(folder), "data.on_bad_sample": "skip"}))


def test_checking_imports_no_torch():
    code = "import sys, llava.train.main; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
