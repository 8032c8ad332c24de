"""The dry run of Qwen2-7B: its table against a sum over all parameters that shares no code with the estimate."""

import re

import pytest
import torch

from llava.mllm import LlavaOVManagerForConditionalGeneration
from llava.train.main import main
from llava.train.mllm.build import config_from_sizes
from llava.train.recipe.load import load_recipe

RECIPES = "scripts/train/recipes/mllm"
PARTS = {
    "vision_tower": "model.vision_tower",
    "projector": "model.multi_modal_projector",
    "fusion": "model.fusion",
    "newline": "model.image_newline",
    "language_model": ("model.language_model", "lm_head"),
}
TRAINED = {"1": {"projector", "fusion"}, "2": set(PARTS)}
GPUS = 8
UNITS = {"GB": 1e9, "MB": 1e6, "KB": 1e3, "bytes": 1}


@pytest.fixture(scope="module")
def shapes():
    """{name: shape} of every parameter."""
    config = config_from_sizes(load_recipe(f"{RECIPES}/stage2_7b.yaml", "grid_manager"))
    with torch.device("meta"):
        model = LlavaOVManagerForConditionalGeneration(config)
    return {name: parameter.shape for name, parameter in model.named_parameters()}


def bytes_of(shapes: dict, trained: set[str]) -> dict[str, dict[str, list[float]]]:
    """{part: {kind: bytes without ZeRO, under ZeRO-1, 2 and 3}} of one of GPUS in bf16, parameter by parameter."""
    sums = {part: {"weights": [0.0] * 4, "gradients": [0.0] * 4, "optimizer": [0.0] * 4} for part in PARTS}
    for name, shape in shapes.items():
        part = next(part for part, prefixes in PARTS.items() if name.startswith(prefixes))
        number, trains = shape.numel(), part in trained and ".post_layernorm." not in name
        held = {
            "weights": (number * (4 if trains else 2), number * 2, number * 2, number * 2 / GPUS),
            "gradients": (number * 4, number * 4, *[number * 4 / GPUS] * 2) if trains else (0, 0, 0, 0),
            "optimizer": (number * 8, *[number * 12 / GPUS] * 3) if trains else (0, 0, 0, 0),
        }
        for kind, sizes in held.items():
            sums[part][kind] = [total + size for total, size in zip(sums[part][kind], sizes)]
    return sums


@pytest.mark.parametrize(("stage", "strategy"), [("1", "ZeRO-1"), ("2", "ZeRO-3")])
def test_the_table_is_the_sum_over_all_parameters(shapes, stage, strategy, capsys, monkeypatch):
    monkeypatch.setenv("NPROC_PER_NODE", str(GPUS))
    assert main(["--recipe", f"{RECIPES}/stage{stage}_7b.yaml", "--arm", "grid_manager", "--dry_run"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"language_model +7,615,616,512 ", printed)  # as its publishers count Qwen2-7B
    assert f"{strategy} *" in printed.partition("GB per GPU")[2]
    expected = bytes_of(shapes, TRAINED[stage])
    for part, kinds in expected.items():
        compare(printed, f"states of {part}", [sum(column) for column in zip(*kinds.values())])
    for kind in ("weights", "gradients", "optimizer"):
        compare(printed, f"  their {kind}", [sum(column) for column in zip(*(k[kind] for k in expected.values()))])
    whole = sum(shape.numel() for shape in shapes.values())
    assert f"the first process alone holds it in float32 there: {4 * whole / 1e9:.1f} GB" in printed


def compare(printed: str, row: str, expected: list[float]) -> None:
    """Raises AssertionError unless a row's cells are these numbers of bytes, as they are rounded."""
    line = next(line for line in printed.splitlines() if line.startswith(f"{row} "))
    cells = re.findall(r"([\d.]+)(?: (GB|MB|KB|bytes))?(?= |$)", line.removeprefix(row))
    assert len(cells) == 4, line
    for (number, unit), size in zip(cells, expected):
        assert float(number) * UNITS[unit or "GB"] == pytest.approx(size, abs=0.0051 * UNITS[unit or "GB"], rel=0.005)
