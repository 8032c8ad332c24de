"""One rank loads the model and the others are sent it: what each then has, holds and trains."""

import json

import pytest
import torch
from safetensors.torch import load_file

from llava.fusion.configs.manager import ManagerConfig
from llava.mllm import LlavaOVManagerForConditionalGeneration
from tests.train.ranks.loader import load, train_steps
from tests.train.run_ranks import run_ranks

RECIPES = "scripts/train/recipes/mllm"
ZERO_3 = "scripts/train/deepspeed/zero3.json"


@pytest.fixture(scope="module")
def heavy_start(tmp_path_factory, make_config, make_processor):
    """A checkpoint in bfloat16 of 23 MB in float32, which are most of what a process holds and writes."""
    folder = tmp_path_factory.mktemp("heavy")
    config = make_config(fusion=ManagerConfig(interval=2))
    config.text_config.hidden_size = 64
    for part in (config.text_config, config.vision_config):
        part.intermediate_size = 4096
    torch.manual_seed(0)
    LlavaOVManagerForConditionalGeneration(config).bfloat16().save_pretrained(folder)
    make_processor().save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_every_rank_has_what_the_first_has_loaded(tiny_keys, heavy_start, wide_start, tmp_path):
    """Replicas, and parameters that ZeRO-3 cuts; with adapters and in bfloat16 too."""
    shared = {"run.deepspeed": ZERO_3}
    lora = {"components.language_model.lora": True, "components.vision_tower.lora": True, "lora.dora": True}
    cases = [
        {"model.start_from": str(heavy_start)},
        {"model.start_from": str(wide_start), "run.precision": "bf16", **lora},
    ]
    keys = [tiny_keys("2", **shared, **case) for case in cases]
    run_ranks(load, f"{RECIPES}/stage2.yaml", "grid_manager", keys, tmp_path, processes=2, folder=tmp_path, timeout=300)
    first, second = (json.loads((tmp_path / f"held-{rank}.json").read_text()) for rank in (0, 1))
    whole = first["whole"][0]
    for (loaded, _), (built, placed), share in zip(first["held"][:2], second["held"][:2], (1, 0.5), strict=True):
        assert loaded > 0.9 * whole
        assert built < 0.1 * whole
        assert 0.9 * share * whole < placed < (share + 0.15) * whole


@pytest.mark.slow
def test_training_is_that_of_ranks_which_all_load(tiny_keys, heavy_start, tmp_path):
    """Under ZeRO-3, which gets the parameters already cut: losses, gradients, weights, bit for bit.

    Its checkpoint does not hold the model as a folder, and takes the room that is looked for before it is written.
    """
    keys = {"model.start_from": str(heavy_start), "components.language_model.trained": False, "optim.max_steps": 3}
    keys = tiny_keys("2", **keys, **{"run.deepspeed": ZERO_3, "fusion.jitter": "paper", "run.save_steps": 2})
    runs = []
    for by_all in (False, True):
        out = tmp_path / str(by_all)
        out.mkdir()
        arguments = (f"{RECIPES}/stage2.yaml", "grid_manager", keys | {"run.output_dir": f"{out}/out"}, by_all, out)
        run_ranks(train_steps, *arguments, processes=2, folder=out, timeout=300)
        runs.append((json.loads((out / "facts.json").read_text()), load_file(out / "weights.safetensors")))
    (facts, weights), (expected_facts, expected_weights) = runs
    assert len(facts["steps"]) == 3
    assert facts["steps"] == expected_facts["steps"]
    assert weights.keys() == expected_weights.keys()
    for name, weight in expected_weights.items():
        assert torch.equal(weights[name], weight), name
    assert not [name for name in facts["written"] if name.endswith((".safetensors", "config.json"))]
    assert facts["estimated"] == pytest.approx(sum(facts["written"].values()), rel=0.05)
