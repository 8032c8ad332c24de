"""A checkpoint that is written on a slow disk. Kills while one is written, full disks: tests/train/folders."""

import time
from pathlib import Path

import pytest

from llava.train import stage
from llava.train.folders import stage_folder
from llava.train.loop import saver
from llava.train.recipe.load import load_recipe
from tests.train.run_ranks import run_ranks

PATIENCE, SLOW = 8, 10  # seconds: of a collective, and for a model to be written


def run_slowly(recipe: str, arm: str, keys: dict) -> None:
    """A stage on one rank of several."""
    write_model = stage_folder.write_model

    def slow(*arguments) -> None:
        time.sleep(SLOW)
        write_model(*arguments)

    saver.write_model = stage_folder.write_model = slow
    stage.run_stage(load_recipe(recipe, arm, keys=keys))


@pytest.mark.slow
def test_the_first_rank_may_write_for_longer_than_a_collective_may_take(tiny_keys, tmp_path):
    """The model of an unfinished run's checkpoint, and the stage's own."""
    keys = {"run.output_dir": f"{tmp_path}/out", "run.collective_timeout": PATIENCE}
    keys["run.deepspeed"] = "scripts/train/deepspeed/zero2.json"  # under DDP transformers leaves gloo its half hour
    keys = tiny_keys("1", **keys, **{"optim.max_steps": 2, "run.save_steps": 1})
    recipe = ("scripts/train/recipes/mllm/stage1.yaml", "grid_manager", keys)
    run_ranks(run_slowly, *recipe, processes=2, folder=tmp_path, timeout=240)
    log = (tmp_path / "rank-0.log").read_text()
    assert log.count("out.checkpoints/checkpoint-1 (") == 1, log
    assert f"saved {tmp_path}/out\n" in log
    assert Path(f"{tmp_path}/out/model.safetensors").is_file()
