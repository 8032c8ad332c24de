"""However a step of the two towers is cut into ranks, and however often a run is killed, it learns the same."""

import json
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.train import faulty

QUIET = {"fusion.noise": False, "fusion.hidden_dropout_prob": 0, "fusion.attention_probs_dropout_prob": 0}
ZERO = "scripts/train/deepspeed/zero{}.json"
# Of each task: ranks, pairs at once, DeepSpeed file. Retrieval compares the pairs of a micro-batch of all ranks.
CUTS = {
    "pretrain": {"ddp-2x1-accumulated": (2, 1, None), "zero2-2x2": (2, 2, ZERO.format(2))},
    "retrieval": {"ddp-2x2": (2, 2, None), "zero3-2x2": (2, 2, ZERO.format(3))},
}
# Their gradient is zero but for rounding, which AdamW makes steps of: a softmax has no use for what is added to all of
# its scores, and at first, of equal scores, none for a temperature.
ROUNDED = ("key.bias", "k_proj.bias", "key_proj.bias", "temperature")


def outcome(recipe) -> tuple[list[dict], list[dict], dict[str, torch.Tensor]]:
    """Logged steps, evaluations, and weights of a finished stage."""
    folder = Path(recipe.run.output_dir)
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    steps = [{key: entry[key] for key in ("step", "loss", "grad_norm")} for entry in history if "loss" in entry]
    evaluated = [
        {key: value for key, value in entry.items() if key.startswith("eval_") and not key.endswith(("time", "second"))}
        for entry in history
        if "eval_runtime" in entry
    ]
    return steps, evaluated, load_file(folder / "model.safetensors")


@pytest.fixture
def ended(pair_recipe, tmp_path):
    """A function: task, name, how a step is cut, to the outcome of the stage."""

    def run(task: str, name: str, ranks: int, batch_size: int, deepspeed: str | None):
        keys = QUIET | {"optim.batch_size": batch_size, "run.deepspeed": deepspeed, "optim.epochs": 1}
        recipe = pair_recipe(task, **keys, **{"run.output_dir": f"{tmp_path}/{name}", "eval.samples": 5})
        log = tmp_path / f"{name}.log"
        assert faulty.run(recipe, log, ranks=ranks) == [0] * ranks, log.read_text()
        return outcome(recipe)

    return run


@pytest.mark.slow
@pytest.mark.parametrize("task", CUTS)
def test_the_same_curve(ended, task):
    steps, evaluated, weights = ended(task, "alone", 1, 4, None)
    assert len({step["loss"] for step in steps}) == len(steps) >= 3
    for name, cut in CUTS[task].items():
        found = ended(task, name, *cut)
        for step, expected in zip(found[0], steps, strict=True):
            assert step == pytest.approx(expected, abs=2e-5, rel=1e-4), name
        for values, expected in zip(found[1], evaluated, strict=True):
            assert values == pytest.approx(expected, abs=1e-4), name
        assert found[2].keys() == weights.keys()
        both = {key: (weight, weights[key]) for key, weight in found[2].items() if not key.endswith(ROUNDED)}
        differences = torch.cat([(weight - expected).flatten() for weight, expected in both.values()])
        # Not the largest one: AdamW's steps are of the rate, 1e-3, also where a gradient is hardly more than rounding.
        assert differences.square().mean().sqrt() < 2e-6, name


@pytest.mark.parametrize("task", ["pretrain", "retrieval"])
def test_a_run_that_is_killed_goes_on_bit_for_bit(pair_recipe, tmp_path, task):
    """With noise and dropout, in the midst of an epoch and behind an evaluation."""
    keys = {"run.save_steps": 1, "eval.steps": 3}
    whole, cut = (pair_recipe(task, **keys, **{"run.output_dir": f"{tmp_path}/{name}"}) for name in ("whole", "cut"))
    log = tmp_path / "log"
    assert faulty.run(whole, log) == [0], log.read_text()
    for step in (2, 5):
        assert faulty.run(cut, log, faulty.signal_after_step(step, signal.SIGKILL)) == [-9], log.read_text()
    assert faulty.run(cut, log) == [0], log.read_text()
    expected, found = outcome(whole), outcome(cut)
    assert found[:2] == expected[:2]
    assert all(torch.equal(weight, expected[2][name]) for name, weight in found[2].items())


@pytest.mark.parametrize("spoilt", ["train", "val"])
def test_a_picture_that_cannot_be_read(pair_recipe, pairs, tmp_path, spoilt):
    """One that is trained on ends the run, saved, and is named; one that is held out costs the evaluation alone."""
    mixture = tmp_path / "captions.yaml"
    mixture.write_text((pairs / "captions.yaml").read_text())
    for split in ("train", "val"):
        content = (pairs / f"captions_{split}.arrow").read_bytes()
        broken = content.replace(b"\x89PNG", b"\x00PNG", 1) if split == spoilt else content
        (tmp_path / f"captions_{split}.arrow").write_bytes(broken)
    recipe, log = pair_recipe("pretrain", **{"data.mixture": str(mixture)}), tmp_path / "log"
    assert faulty.run(recipe, log) == [2 if spoilt == "train" else 0], log.read_text()
    said, place = log.read_text().splitlines(), f"captions_{spoilt}.arrow row 1"
    if spoilt == "train":
        assert place in said[-1]
        assert "mend it and start again, from " in said[-1]
    else:
        told = [line for line in said if "no evaluation: " in line]
        assert len(told) == 2
        assert all(place in line and line.endswith("training goes on") for line in told)
