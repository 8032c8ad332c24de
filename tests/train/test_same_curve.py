"""However a step is cut into ranks and micro-batches, and whatever the strategy, the loss curve is the same.

Digit pages through stage 2's recipe as the quickstart has it, from models that have learned nothing: answers of unequal
length, text beside pages, and a number of samples that is no multiple of the step. --data-seed chooses other pages,
weights and orders.
"""

import json
from collections.abc import Callable
from functools import cache

import pytest

from llava.demo.digit_pages import DIGIT_PAGES
from llava.demo.mixture import write_mixture
from llava.demo.pretrain import pretrain_language_model, pretrain_tower
from tests.train.recorder import record_losses
from tests.train.run_ranks import run_ranks

STEPS, GLOBAL_BATCH = 12, 8
STOPS = 10  # within the second epoch
SAMPLES = 61  # 8 steps an epoch, the last one of 5 samples
# processes (None: without torchrun), samples at once, DeepSpeed file, whether samples are packed, precision
CUTS = {
    "accumulation-1x8": (None, 1, None),
    "ddp-2x4": (2, 4, None),
    "ddp-2x1-accumulated": (2, 1, None),
    "zero2-one-process": (1, 4, "scripts/train/deepspeed/zero2.json"),
    "zero2-2x2-accumulated": (2, 2, "scripts/train/deepspeed/zero2.json"),
    "zero3-one-process": (1, 4, "scripts/train/deepspeed/zero3.json"),
    "zero3-2x2-accumulated": (2, 2, "scripts/quickstart/zero3.json"),
    "packed-8x1": (None, 8, None, True),
    "packed-zero2-2x2-accumulated": (2, 2, "scripts/train/deepspeed/zero2.json", True),
}
IN_BF16 = {
    "ddp-2x2-accumulated": (2, 2, None, False, "bf16"),
    "zero1-2x2-accumulated": (2, 2, "scripts/train/deepspeed/zero1.json", False, "bf16"),
    "zero2-2x2-accumulated": (2, 2, "scripts/train/deepspeed/zero2.json", False, "bf16"),
    "zero3-2x2-accumulated": (2, 2, "scripts/quickstart/zero3.json", False, "bf16"),
}


@pytest.fixture(scope="module")
def start(data_seed, tmp_path_factory):
    """A folder with data/, siglip/ and qwen2/."""
    folder = tmp_path_factory.mktemp("digit_pages")
    pages = round(SAMPLES / 0.6)  # stage 2's share
    write_mixture(folder / "data", DIGIT_PAGES, captions=1, pages=pages, test_pages=1, seed=data_seed)
    assert len(json.loads((folder / "data/stage2.json").read_text())) == SAMPLES
    pretrain_tower(folder / "siglip", steps=1, batch_size=2, seed=data_seed)
    pretrain_language_model(folder / "qwen2", steps=1, batch_size=2, seed=data_seed)
    return folder


@pytest.fixture(scope="module")
def curve(start, data_seed, tmp_path_factory):
    """A function: how a step is cut, as in CUTS, to the losses of all steps; stops: also after so many, and goes on."""

    def run(
        processes: int | None,
        batch_size: int,
        deepspeed: str | None,
        packing: bool = False,
        precision: str = "fp32",
        stops: int | None = None,
    ) -> list[float]:
        out = tmp_path_factory.mktemp("run")
        keys = {
            "model.start_from": None,
            "model.vision_tower": f"{start}/siglip",
            "model.language_model": f"{start}/qwen2",
            "fusion.jitter": "none",
            "data.mixture": f"{start}/data/stage2.yaml",
            "data.image_folder": f"{start}/data",
            "data.packing": packing,
            "optim.global_batch_size": GLOBAL_BATCH,
            "optim.batch_size": batch_size,
            "optim.max_steps": STEPS,
            "run.seed": data_seed,
            "run.logging_steps": 1,
            "run.precision": precision,
            "run.save_steps": stops,
            "run.deepspeed": deepspeed,
            "run.collective_timeout": 60,
            "run.output_dir": f"{out}/checkpoint",
        }
        overrides = ["scripts/quickstart/stage2.yaml", "scripts/quickstart/fusion/manager.yaml"]
        recipe = ("scripts/train/recipes/mllm/stage2.yaml", "grid_manager", overrides)
        for stop_after in [None] if stops is None else [stops, None]:
            run_ranks(record_losses, *recipe, keys, out, stop_after, processes=processes, folder=out, timeout=240)
        assert not any((out / f"rank-{rank}.log").read_text() for rank in range(1, processes or 1))
        facts = json.loads((out / "facts.json").read_text())
        strategy = "DeepSpeedEngine" if deepspeed else "DistributedDataParallel"
        assert facts["engine"] == (strategy if processes else "LlavaOVManagerForConditionalGeneration")
        assert (facts["ranks"], facts["samples"]) == (processes or 1, SAMPLES)
        assert (facts["padding"] == [0.0] * STEPS) == (packing or batch_size == 1)
        return facts["losses"]

    return run


@pytest.fixture(scope="module")
def at_once(curve) -> list[float]:
    """One process that takes a step's samples together."""
    return curve(None, GLOBAL_BATCH, None)


@pytest.mark.slow
@pytest.mark.parametrize("cut", CUTS)
def test_the_same_curve(curve, at_once, data_seed, cut):
    losses = curve(*CUTS[cut])
    assert len(losses) == len(at_once) == STEPS
    assert max(at_once) - min(at_once) > 0.5  # it learns; a curve that stands still would be the same anyhow
    differences = [abs(found - expected) for found, expected in zip(losses, at_once)]
    worst = max(range(STEPS), key=differences.__getitem__)
    assert differences[worst] < 1e-5, f"seed {data_seed}, step {worst + 1}: {losses[worst]}, at once {at_once[worst]}"
    print(f"{cut}: largest difference {differences[worst]:.1e} at step {worst + 1}")


@pytest.fixture(scope="module")
def at_once_in_bf16(curve) -> Callable[[bool], list[float]]:
    """A function: whether under ZeRO, which rounds trained weights too, to the losses of one process.

    It takes a step's samples together.
    """

    @cache
    def run(under_zero: bool) -> list[float]:
        cut = (1, GLOBAL_BATCH, "scripts/train/deepspeed/zero2.json") if under_zero else (None, GLOBAL_BATCH, None)
        return curve(*cut, precision="bf16")

    return run


@pytest.mark.slow
@pytest.mark.parametrize("cut", IN_BF16)
def test_the_curve_in_bf16(curve, at_once, at_once_in_bf16, cut):
    """Two ranks that accumulate, stop and go on: the losses of one process, but for what rounding does.

    A loss is rounded to 3 digits or so, and its errors grow with the steps.
    """
    losses = curve(*IN_BF16[cut], stops=STOPS)
    assert len(losses) == STEPS
    differences = {
        name: max(abs(found - loss) for found, loss in zip(losses, expected))
        for name, expected in (("bf16", at_once_in_bf16("zero" in cut)), ("fp32", at_once))
    }
    print(cut, differences)
    assert differences["bf16"] < 0.01, differences
    assert differences["fp32"] < 0.02, differences
