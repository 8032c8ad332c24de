"""A start in which one rank is busy for longer than a collective may take. Slow disks: tests/train/loop/test_saver."""

import time
from pathlib import Path

import pytest

from llava.data import mixture
from llava.train import stage
from llava.train.mllm import data
from llava.train.ranks.process_group import rank
from llava.train.recipe.load import load_recipe
from tests.train.run_ranks import run_ranks

PATIENCE, SLOW = 5, 7  # seconds: of a collective, and for an index to be made and for images to be looked at


def run_slowly(recipe: str, arm: str, keys: dict) -> None:
    """A stage on one rank of several; the first of them has an index to make, and images to look at."""

    def slow(function):
        def call(*arguments, **options):
            if rank() == 0:
                print("slow:", function.__name__, flush=True)
                time.sleep(SLOW)
            return function(*arguments, **options)

        return call

    mixture.index_files, data.inspect_store = slow(mixture.index_files), slow(data.inspect_store)
    stage.run_stage(load_recipe(recipe, arm, keys=keys))


@pytest.mark.slow
def test_ranks_wait_for_the_index_and_the_images_and_then_train(tiny_keys, tmp_path):
    """The images while the ranks are joined, under ZeRO-2: under DDP transformers leaves gloo its half hour."""
    keys = {"run.output_dir": f"{tmp_path}/out", "run.collective_timeout": PATIENCE}
    keys["run.deepspeed"] = "scripts/train/deepspeed/zero2.json"
    keys = tiny_keys("1", **keys, **{"optim.max_steps": 2})
    recipe = ("scripts/train/recipes/mllm/stage1.yaml", "grid_manager", keys)
    run_ranks(run_slowly, *recipe, processes=2, folder=tmp_path, timeout=240)
    log = (tmp_path / "rank-0.log").read_text()
    assert [line for line in log.splitlines() if line.startswith("slow:")] == [
        "slow: index_files",
        "slow: inspect_store",
    ]
    assert f"saved {tmp_path}/out\n" in log
    assert Path(f"{tmp_path}/out/model.safetensors").is_file()
