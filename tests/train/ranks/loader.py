"""What runs on every rank of test_shared_weights.py: the same model loaded by each rank, and by the first alone."""

import ctypes
import gc
import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from unittest import mock

import torch
from deepspeed import zero
from deepspeed.runtime.zero.partition_parameters import is_zero_param
from safetensors.torch import save_file
from transformers import set_seed

import llava.train.stage
from llava.train.estimate.plan import Plan
from llava.train.folders.interim import read_mark
from llava.train.loop.components import Component, freeze, full_shape
from llava.train.loop.precision import lower_precision
from llava.train.mllm.build import build
from llava.train.mllm.components import split_components
from llava.train.mllm.family import MLLM
from llava.train.ranks.process_group import leave_process_group, rank, start_process_group
from llava.train.ranks.shared_weights import share_weights
from llava.train.recipe.load import load_recipe
from llava.train.recipe.schema import Recipe
from llava.train.stage import prepare, train, training_arguments, zero_3_configuration


def private_bytes() -> int:
    """What this process holds in memory and shares with no other."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # or what was freed in between counts
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(("Private_Clean", "Private_Dirty")))


def load(recipe: str, arm: str, many_keys: list[dict], out: Path) -> None:
    """Loads the model of each of many_keys both ways, hands it out for replicas, and cut for ZeRO-3, and compares.

    Writes per case the bytes of the model, and for replicas and ZeRO-3 what this process holds of it, once it is built
    and once it has been handed out.
    """
    torch.set_num_threads(1)
    stages = [load_recipe(recipe, arm, keys=keys) for keys in many_keys]
    loaded = [built(stage, with_weights=True)[0] for stage in stages]
    handed_out = []
    for stage in stages:
        for zero_3 in (False, True):
            before = private_bytes()
            model, components = built(stage, with_weights=rank() == 0)
            handed_out.append((model, components, zero_3, private_bytes() - before))
    start_process_group(stages[0].run)
    arguments = training_arguments(stages[0], Plan(16, 2, 1, 4, 0))  # from here on transformers thinks of ZeRO-3
    held = []
    for number, (model, components, zero_3, built_bytes) in enumerate(handed_out):
        before = private_bytes() - built_bytes
        share_weights(model, arguments.device, zero_3_configuration(arguments, model) if zero_3 else None)
        held.append((built_bytes, private_bytes() - before))
        assert zero_3 == all(is_zero_param(parameter) for parameter in model.parameters())
        with zero.GatheredParameters(list(model.parameters()) if zero_3 else []):
            compare(loaded[number // 2], model)
        for component in components:
            for name, parameter in component.parameters.items():
                assert parameter is model.get_parameter(name)
    whole = [sum(parameter.nbytes for parameter in model.parameters()) for model in loaded]
    Path(out, f"held-{rank()}.json").write_text(json.dumps({"whole": whole, "held": held}))
    leave_process_group()


def built(stage: Recipe, with_weights: bool) -> tuple[torch.nn.Module, list[Component]]:
    """The model as prepare() has it before the ranks are connected, and its components."""
    set_seed(stage.run.seed)
    model, _ = build(stage, with_weights=with_weights)
    components = split_components(model, stage)
    freeze(components)
    lower_precision(model, stage)
    return model, components


def compare(expected: torch.nn.Module, model: torch.nn.Module) -> None:
    """Raises AssertionError unless all parameters, buffers and settings are the same, bit for bit."""
    for kind in ("named_parameters", "named_buffers"):
        ours = dict(getattr(model, kind)(remove_duplicate=False))
        theirs = dict(getattr(expected, kind)(remove_duplicate=False))
        assert list(ours) == list(theirs)
        for name, tensor in theirs.items():
            assert torch.equal(ours[name], tensor), name
            assert (ours[name].dtype, ours[name].requires_grad) == (tensor.dtype, tensor.requires_grad), name
            assert full_shape(ours[name]) == tensor.shape
    assert (model.lm_head.weight is model.get_input_embeddings().weight) == model.config.tie_word_embeddings
    assert model.generation_config.to_dict() == expected.generation_config.to_dict()
    origin = {"_name_or_path": None}
    assert model.config.to_dict() | origin == expected.config.to_dict() | origin


def train_steps(recipe: str, arm: str, keys: dict, by_all: bool, out: Path) -> None:
    """Trains; writes down the steps, the weights and the files of the last checkpoint.

    by_all: each rank has loaded the model and DeepSpeed takes it from there.
    """
    torch.set_num_threads(1)
    with mock.patch.multiple(llava.train.stage, **BY_ALL) if by_all else nullcontext():
        trainer = prepare(load_recipe(recipe, arm, keys=keys)).trainer
    train(trainer)
    weights, estimated = trainer.gather_weights(), trainer.saver.state_bytes()
    if rank() == 0:
        steps = [[entry["loss"], entry["grad_norm"]] for entry in trainer.state.log_history if "loss" in entry]
        written = read_mark(trainer.saver.last)["files"] if trainer.saver.last else {}
        Path(out, "facts.json").write_text(json.dumps({"steps": steps, "written": written, "estimated": estimated}))
        save_file(weights, out / "weights.safetensors")
    else:
        assert weights == {}
    leave_process_group()


LOADED_BY_ALL = replace(MLLM, build=lambda recipe, with_weights: build(recipe))
BY_ALL = {"family_of": lambda recipe: LOADED_BY_ALL, "share_weights": lambda *_: None}
