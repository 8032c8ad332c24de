"""Small data: steps without any image, and a last step of one sample and fillers, under every strategy and wrapper.

What a micro-batch without images leaves without a gradient, DDP waits for, and some of DeepSpeed's optimizers take the
gradient of the step before. So every loss and norm is compared with one process that is wrapped in nothing.
"""

import json

import pytest

from tests.train.recorder import record_losses
from tests.train.run_ranks import run_ranks

IMAGES, TEXTS, GLOBAL_BATCH = 5, 4, 4
STEPS = 3  # one of images, one of text, and one of a sample and three fillers
WRAPPED = {
    "ddp-1": (1, None),
    "ddp-2": (2, None),
    "zero2-1": (1, "zero2"),
    "zero2-2": (2, "zero2"),
    "zero2_offload-1": (1, "zero2_offload"),
    "zero3-1": (1, "zero3"),
    "zero3-2": (2, "zero3"),
}
LORA = {
    "components.language_model.lora": True,
    "components.vision_tower.trained": False,
    "components.projector.trained": False,
    "lora.rank": 2,
}


@pytest.fixture(scope="module")
def keys(data_folder, tiny_keys, make_model, make_processor, tmp_path_factory) -> dict:
    """Stage 2 from random weights on the first samples of each kind, evaluated after the second and the last step."""
    folder = tmp_path_factory.mktemp("part_filled")
    make_model().save_pretrained(folder / "start")
    make_processor().save_pretrained(folder / "start")
    records = json.loads((data_folder / "turns.json").read_text())
    images = [record for record in records if record["image"] and not record["video"]][:IMAGES]
    texts = [record for record in records if not record["image"] and not record["video"]][:TEXTS]
    (folder / "data.json").write_text(json.dumps(images + texts))
    (folder / "data.yaml").write_text("datasets: [{json_path: data.json, sampling_strategy: all}]")
    rate = 1e-3  # a gradient too many shows in the loss of the next step
    return tiny_keys(
        "2",
        **{
            "model.start_from": f"{folder}/start",
            "data.mixture": f"{folder}/data.yaml",
            "components.vision_tower.lr": rate,
            "optim.lr": rate,
            "optim.warmup": 0,
            "optim.global_batch_size": GLOBAL_BATCH,
            "optim.batch_size": 1,
            "eval.data": f"{folder}/data.json",
            "eval.steps": 2,
            "eval.answers": 0,
            "run.seed": 1,  # the images' step comes before that of text
        },
    )


@pytest.fixture(scope="module")
def run(keys, tmp_path_factory):
    """A function: ranks (None: without torchrun), DeepSpeed's configuration and changed keys to what was recorded."""

    def run(ranks: int | None, deepspeed: str | None, **changes) -> dict:
        out = tmp_path_factory.mktemp("run")
        strategy = deepspeed and f"scripts/train/deepspeed/{deepspeed}.json"
        changed = keys | {"run.deepspeed": strategy, "run.output_dir": f"{out}/checkpoint"} | changes
        arguments = ("scripts/train/recipes/mllm/stage2.yaml", "grid_manager", [], changed, out)
        run_ranks(record_losses, *arguments, processes=ranks, folder=out, timeout=120)
        return json.loads((out / "facts.json").read_text())

    return run


@pytest.fixture(scope="module")
def unwrapped(run) -> dict:
    facts = run(None, None)
    assert facts["engine"] == "LlavaOVManagerForConditionalGeneration"
    assert facts["samples"] == IMAGES + TEXTS
    assert (len(facts["losses"]), len(facts["held_out"])) == (STEPS, 2)
    assert facts["crops"][0] > facts["crops"][1] == 0 < facts["crops"][2]
    return facts


def check_equal(found: dict, expected: dict) -> None:
    for name in ("losses", "grad_norms", "held_out"):
        assert found[name] == pytest.approx(expected[name], abs=2e-5), name


@pytest.mark.slow
@pytest.mark.parametrize("case", WRAPPED)
def test_every_wrapper_trains_alike(run, unwrapped, case):
    ranks, deepspeed = WRAPPED[case]
    facts = run(ranks, deepspeed)
    assert facts["engine"] == ("DeepSpeedEngine" if deepspeed else "DistributedDataParallel")
    assert facts["ranks"] == ranks
    check_equal(facts, unwrapped)


@pytest.mark.slow
def test_zero_1_in_bfloat16_trains_as_zero_2(run):
    """DeepSpeed has an optimizer of its own for it, which a rehearsal leaves as it was."""
    expected = run(2, "zero2", **{"run.precision": "bf16"})
    found = run(2, "zero1", **{"run.precision": "bf16", "run.rehearsal": "always"})
    for name in ("losses", "grad_norms", "held_out"):
        assert found[name] == pytest.approx(expected[name], rel=0.01), name


@pytest.mark.slow
def test_packed_samples_and_frozen_parts_in_one_wrapped_process(run):
    """LoRA's base, the tower and the projector are frozen: managers, newline and adapters alone have a gradient."""
    facts = run(1, None, **LORA, **{"data.packing": True, "optim.batch_size": 2})
    assert facts["engine"] == "DistributedDataParallel"
    check_equal(facts, run(None, None, **LORA))
