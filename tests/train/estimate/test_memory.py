"""The estimate against a calculation by hand for the 0.5B model, and against real tensors of the tiny one."""

import json
import os
import subprocess
from pathlib import Path

import pytest
from torch.autograd.graph import saved_tensors_hooks

from llava.fusion.base import FusionCost
from llava.fusion.none import NoFusion
from llava.train.estimate.memory import Work, activation_bytes, memory_table, time_line
from llava.train.estimate.sharding import Strategy, estimate, read_strategy, strategies
from llava.train.loop.components import freeze
from llava.train.main import main
from llava.train.mllm import recompute_compile
from llava.train.mllm.build import build_on_meta, config_from_sizes
from llava.train.mllm.components import split_components
from llava.train.recipe.load import load_recipe
from llava.train.recipe.schema import LAYERED
from llava.train.stage import prepare

WORKER = Path(__file__).with_name("memory_worker.py")
DEEPSPEED = "scripts/train/deepspeed"
# The 0.5B model with managers: all parameters, and those that train in stage 2 (SigLIP's last norm does not).
P, T = 893_699_744, 893_697_440


@pytest.fixture(scope="module")
def components_05b():
    recipe = load_recipe("scripts/train/recipes/mllm/stage2.yaml", "grid_manager")
    components = split_components(build_on_meta(config_from_sizes(recipe), recipe), recipe)
    freeze(components)
    return components


@pytest.mark.parametrize(
    ("strategy", "weights", "gradients", "optimizer", "buffers"),
    [
        (Strategy("", 0), 4 * T + 2 * (P - T), 4 * T, 8 * T, 4 * T + 2 * T),
        (Strategy("", 1, 200_000_000), 2 * P, 2 * T, 12 * T / 16, 2 * 2 * 2e8 + T / 4),
        (Strategy("", 1, 200_000_000, sums_in_fp32=True), 2 * P, 4 * T, 12 * T / 16, 6 * T),
        (Strategy("", 2, 200_000_000), 2 * P, T / 8, 12 * T / 16, 2 * 2 * 2e8 + T / 4),
        (Strategy("", 2, 200_000_000, overlap=False), 2 * P, T / 8, 12 * T / 16, 2 * 2e8 + T / 4),
        (Strategy("", 2, 200_000_000, sums_in_fp32=True), 2 * P, T / 4, 12 * T / 16, 2 * 2 * 2e8 + T / 4),
        (Strategy("", 3, 896**2), P / 8, T / 8, 12 * T / 16, 2 * 896**2 + T / 4 + 2 * P * 15 / 16),
        (Strategy("", 3, 896**2, max_live=10**8), P / 8, T / 8, 12 * T / 16, 2 * 896**2 + T / 4 + 2e8 * 15 / 16),
    ],
)
def test_the_05b_model_on_16_gpus(components_05b, strategy, weights, gradients, optimizer, buffers):
    found = estimate(strategy, components_05b, processes=16, width=2, activations=5e9)
    sums = {kind: sum(part[kind] for part in found.states.values()) for kind in ("weights", "gradients", "optimizer")}
    assert sums == pytest.approx({"weights": weights, "gradients": gradients, "optimizer": optimizer})
    assert found.buffers == pytest.approx(buffers)
    assert found.total == pytest.approx(weights + gradients + optimizer + buffers + 5e9)
    assert found.host == 0


def test_offloaded_states_are_on_the_host(components_05b):
    own = read_strategy(f"{DEEPSPEED}/zero3_offload.json", 896)
    found = estimate(own, components_05b, processes=16, width=2, activations=0)
    assert (own.offload_optimizer, own.offload_weights) == (True, True)
    assert found.host == pytest.approx(12 * T / 16 + 4 * T / 16 + 2 * P / 16)
    assert sum(sum(part.values()) for part in found.states.values()) == 0
    assert "on the host, a process" in memory_table([found], own)


def test_every_shipped_deepspeed_file_is_read():
    files = sorted(Path(DEEPSPEED).glob("*.json"))
    found = {path.stem: read_strategy(str(path), 896) for path in files}
    assert {name: own.name for name, own in found.items()} == {
        "zero1": "ZeRO-1",
        "zero2": "ZeRO-2",
        "zero2_offload": "ZeRO-2 offload",
        "zero3": "ZeRO-3",
        "zero3_offload": "ZeRO-3 offload",
    }
    assert (found["zero2"].bucket, found["zero3"].bucket) == (200_000_000, 896**2)
    assert all(own.sums_in_fp32 for own in found.values())


@pytest.mark.parametrize(
    ("file", "names", "own"),
    [
        (None, ["no ZeRO", "ZeRO-1", "ZeRO-2", "ZeRO-3"], "no ZeRO"),
        ("zero3", ["no ZeRO", "ZeRO-1", "ZeRO-2", "ZeRO-3"], "ZeRO-3"),
        ("zero1", ["no ZeRO", "ZeRO-1", "ZeRO-2", "ZeRO-3"], "ZeRO-1"),
        ("zero2_offload", ["no ZeRO", "ZeRO-1", "ZeRO-2", "ZeRO-3", "ZeRO-2 offload"], "ZeRO-2 offload"),
    ],
)
def test_the_recipes_own_strategy_is_among_those_shown(tiny_recipe, file, names, own):
    recipe = tiny_recipe("1", **{"run.deepspeed": file and f"{DEEPSPEED}/{file}.json"})
    shown, found = strategies(recipe.run.deepspeed, 24)
    assert [strategy.name for strategy in shown] == names
    assert found.name == own
    assert found in shown


def tiny_components(recipe):
    stage = prepare(recipe)
    return stage, stage.trainer.components


def test_real_tensors_of_plain_training(tiny_recipe):
    """Weights, gradients and AdamW's moments of a step in one process, by their sizes in bytes."""
    recipe = tiny_recipe("1", **{"components.vision_tower.trained": True, "components.language_model.trained": True})
    stage, components = tiny_components(recipe)
    stage.trainer.args.max_steps = 1
    gradients = {}
    stage.trainer.create_optimizer().register_step_pre_hook(
        lambda *_: gradients.update({id(p): p.grad.nbytes for p in stage.trainer.model.parameters() if p.requires_grad})
    )
    stage.trainer.train()
    moments = [state[key] for state in stage.trainer.optimizer.state.values() for key in ("exp_avg", "exp_avg_sq")]
    found = estimate(Strategy("", 0), components, processes=1, width=4, activations=0)
    sums = {kind: sum(part[kind] for part in found.states.values()) for kind in ("weights", "gradients", "optimizer")}
    assert sums == {
        "weights": sum(parameter.nbytes for parameter in stage.trainer.model.parameters()),
        "gradients": sum(gradients.values()),
        "optimizer": sum(moment.nbytes for moment in moments),
    }


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_real_tensors_of_deepspeed(tiny_keys, tiny_recipe, forked_python, tmp_path, stage):
    """What each of two processes holds in bf16; DeepSpeed pads groups, so that the tiny model's differ by a few %."""
    keys = {
        "run.deepspeed": f"{DEEPSPEED}/zero{stage}.json",
        "run.precision": "bf16",
        "run.output_dir": f"{tmp_path}/out",
        "components.language_model.trained": True,
        "optim.max_steps": 2,
    }
    arguments = ["scripts/train/recipes/mllm/stage1.yaml", "grid_manager", json.dumps(tiny_keys("1", **keys))]
    command = [forked_python.command, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", WORKER]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path.cwd())}
    done = subprocess.run(
        [*command, *arguments, f"{tmp_path}/held.json"],
        capture_output=True,
        text=True,
        timeout=200,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    held = json.loads((tmp_path / "held.json").read_text())

    recipe = tiny_recipe("1", **keys | {"run.deepspeed": None, "run.precision": "fp32"})
    _, components = tiny_components(recipe)
    strategy = read_strategy(f"{DEEPSPEED}/zero{stage}.json", 24)
    found = estimate(strategy, components, processes=2, width=2, activations=0)
    for kind in set(held) - {"bucket"}:
        assert held[kind] == pytest.approx(sum(part[kind] for part in found.states.values()), rel=0.05), kind
    if stage == 1:
        assert held["bucket"] == pytest.approx(found.buffers, rel=0.05)
    else:
        buckets = 2 * strategy.bucket * (2 if stage == 2 else 1)
        assert held["bucket"] == buckets
        assert found.buffers > buckets


def autograd_keeps(stage, checkpointed) -> tuple[int, float]:
    """Of the stage's first sample as a micro-batch in fp32: bytes that autograd keeps, and those that are estimated."""
    trainer, model = stage.trainer, stage.trainer.model.train()
    batch = trainer.data_collator([trainer.train_dataset[0]])
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    layered = set(checkpointed) & {"vision_tower", "language_model"}
    for layer in (layer for name in layered for layer in recompute_compile.layers(model, name)):
        layer.register_forward_pre_hook(lambda _, given: (keep(given[0]), None)[1])
    with saved_tensors_hooks(keep, lambda tensor: tensor):
        trainer.compute_loss(model, batch)
    supervised = int((batch["labels"] >= 0).sum())
    work = Work(1, batch["input_ids"].shape[1], batch["pixel_values"].shape[0], supervised)
    names = [component.name for component in trainer.components if component.trained]
    return sum(size for size, _ in kept.values()), activation_bytes(model.config, work, names, 4, checkpointed)


@pytest.mark.parametrize("arm", ["grid", "grid_manager"])
@pytest.mark.parametrize(
    ("frozen", "checkpointed"),
    [
        ((), []),
        (("language_model",), []),
        (("vision_tower",), []),
        (("vision_tower", "language_model"), []),
        ((), ["projector"]),
        ((), ["vision_tower"]),
        ((), ["language_model"]),
    ],
)
def test_real_tensors_that_autograd_keeps(tiny_recipe, arm, frozen, checkpointed):
    """Of a micro-batch in fp32. The estimate is rough: within a third."""
    trained = {f"components.{name}.trained": name not in frozen for name in ("vision_tower", "language_model")}
    stage = prepare(tiny_recipe("1", arm, **trained, **{"run.gradient_checkpointing": checkpointed}))
    measured, guessed = autograd_keeps(stage, checkpointed)
    print(arm, frozen, f"measured {measured:,} bytes, estimated {guessed:,.0f}, ratio {guessed / measured:.2f}")
    assert guessed == pytest.approx(measured, rel=1 / 3)


def test_checkpointing_keeps_less():
    recipe = load_recipe("scripts/train/recipes/mllm/stage2.yaml", "grid_manager")
    config, work = config_from_sizes(recipe), Work(2, 3189, 5, 260)
    everything = ["vision_tower", "projector", "fusion", "newline", "language_model"]
    with_it, without, tower, projector = (
        activation_bytes(config, work, everything, 2, names)
        for names in (LAYERED, (), ("vision_tower",), (*LAYERED, "projector"))
    )
    logits = 2 * 260 * 151936 * 14
    layers = 24 * 6378 * 896 * 2 + 26 * 7290 * 1152 * 2
    assert logits + layers < with_it < without / 4
    assert with_it < tower < without
    assert with_it - projector == 2 * 12 * 7290 * 896 * 2  # two of three tensors of 12 of 13 maps, 2 bytes a number


@pytest.mark.parametrize(("crops", "visual_tokens"), [(9, 30), (1, 16)], ids=["shrunk", "whole"])
def test_what_fusion_keeps_inside_the_language_model_is_of_visual_tokens(
    make_config, monkeypatch, crops, visual_tokens
):
    config, found = make_config(fusion=None), []
    for kept in (0, 1000):
        monkeypatch.setattr(NoFusion, "cost", lambda config, sizes, kept=kept: FusionCost(kept_of_token=kept))
        found.append(activation_bytes(config, Work(2, 30, crops, 5), ["language_model"], 4, ()))
    assert found[1] - found[0] == 4 * 2 * visual_tokens * 1000


def test_the_dry_run_tells_memory_and_time(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("NNODES", "2")
    monkeypatch.setenv("NPROC_PER_NODE", "8")
    arguments = ["--recipe", "scripts/train/recipes/mllm/stage2.yaml", "--arm", "grid_manager", "--dry_run"]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "time        unknown; give --tokens_per_second N" in printed
    assert "memory      estimated for bf16, 16 processes, 2 x 3,189 tokens and 2 x 5 crops at once, " in printed
    rows = {line.split("  ")[0].strip(): line.split()[-4:] for line in printed.splitlines() if line}
    assert rows["GB per GPU"] == ["ZeRO-1", "*", "ZeRO-2", "ZeRO-3"]
    assert rows["states of language_model"] == ["7.90", "3.33", "1.48", "0.56"]
    assert sorted(rows["sum"], key=float, reverse=True) == rows["sum"]
    assert main([*arguments, "--tokens_per_second", "90000"]) == 0
    assert "time        about 38.5 hours at 90,000 tokens a second" in capsys.readouterr().out


def test_time():
    assert time_line(3_600_000, 1000) == "about 1.0 hours at 1,000 tokens a second"
    assert time_line(120_000, 1000) == "about 2.0 minutes at 1,000 tokens a second"
    assert time_line(2500, 1000) == "about 2.5 seconds at 1,000 tokens a second"
