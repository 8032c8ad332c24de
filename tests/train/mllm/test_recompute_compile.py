"""Checkpointing by component and compiled layers: what is computed twice, and that loss and gradients stay the same."""

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch._dynamo.testing import CompileCounterWithBackend

from llava.errors import LlavaError
from llava.mllm import LlavaOVManagerForConditionalGeneration
from llava.train.mllm import recompute_compile
from llava.train.recipe import checks
from llava.train.recipe.checks import check_recipe
from llava.train.recipe.load import load_recipe
from llava.train.stage import prepare, save, train
from tests.train import worker
from tests.train.run_ranks import run_ranks
from tests.train.test_distributed import compare, read_run, stage_2_keys  # noqa: F401  (a fixture)

PARTS = ("vision_tower", "projector", "language_model")
# A matrix of each, by which to count how often the component has run; the last of a layer is not needed again.
COUNTED = {
    "vision_tower": "model.vision_tower.encoder.layers.{}.mlp.fc1",
    "projector": "model.multi_modal_projector.linear_1",
    "language_model": "model.language_model.layers.{}.mlp.gate_proj",
}


@pytest.fixture
def step(tiny_recipe):
    """A function: keys to (how often each component's matrices ran, forward and backward; loss; gradients).

    counted: they are counted by hooks, which would make each layer another one to compile.
    """

    def run(counted: bool = True, **keys) -> tuple[Counter, float, dict]:
        trainer = prepare(tiny_recipe("1", **{"components.vision_tower.trained": True, **keys})).trainer
        model, calls = trainer.model.train(), Counter()
        for name, pattern in COUNTED.items() if counted else ():
            for place in range(len(recompute_compile.layers(model, name)) if "{}" in pattern else 1):
                module = model.get_submodule(pattern.format(place))
                module.register_forward_hook(lambda *_, name=name: calls.update([name]))
        batch = trainer.data_collator([trainer.train_dataset[index] for index in range(2)])
        batch.pop("samples")
        loss = trainer.compute_loss(model, batch)
        loss.backward()
        gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        return calls, loss.item(), gradients

    return run


@pytest.mark.parametrize("asked", [True, [], ["vision_tower"], ["projector"], ["language_model"], list(PARTS)])
def test_what_is_asked_for_and_nothing_else_is_computed_again(step, asked):
    once, loss, gradients = step(**{"run.gradient_checkpointing": False})
    assert once == {"vision_tower": 4, "projector": 2, "language_model": 6}  # the last of 2 maps is the visual input
    found, its_loss, its_gradients = step(**{"run.gradient_checkpointing": asked})
    again = ("vision_tower", "language_model") if asked is True else asked
    assert found == {name: count * (1 + (name in again)) for name, count in once.items()}
    assert its_loss == loss
    assert set(its_gradients) == set(gradients)
    for name, gradient in gradients.items():
        assert torch.equal(its_gradients[name], gradient), name


def test_what_a_layer_drops_is_dropped_again(tiny_recipe):
    """torch's own function restores the random numbers of a layer that draws some."""
    keys = {"components.language_model.trained": True, "run.gradient_checkpointing": False}
    trainer = prepare(tiny_recipe("1", **keys)).trainer
    model, found = trainer.model.train(), []
    for layer in recompute_compile.layers(model, "language_model"):
        layer.mlp.act_fn = torch.nn.Sequential(torch.nn.SiLU(), torch.nn.Dropout(0.5))
    batch = trainer.data_collator([trainer.train_dataset[0]])
    batch.pop("samples")
    for components in ((), ("language_model",)):
        recompute_compile.checkpoint(model, components)
        model.zero_grad()
        torch.manual_seed(0)
        trainer.compute_loss(model, batch).backward()
        found.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(gradient, found[1][name]) for name, gradient in found[0].items())


@pytest.fixture(scope="module")
def stage_2(stage_2_keys, tmp_path_factory):  # noqa: F811
    """A function: the number of processes and changed keys to what two steps of stage 2 left behind."""

    def run(processes: int | None, **changes) -> dict:
        out = tmp_path_factory.mktemp("run")
        keys = json.dumps(stage_2_keys | {"optim.max_steps": 2, "run.output_dir": f"{out}/checkpoint"} | changes)
        recipe = "scripts/train/recipes/mllm/stage2.yaml"
        run_ranks(worker.main, recipe, "grid_manager", keys, str(out), processes=processes, folder=out, timeout=140)
        return read_run(out)

    return run


@pytest.fixture(scope="module")
def nothing_checkpointed(stage_2) -> dict:
    return stage_2(None, **{"run.gradient_checkpointing": False})


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "zero3"])
def test_checkpointed_components_on_two_processes(stage_2, nothing_checkpointed, strategy):
    deepspeed = None if strategy == "ddp" else f"scripts/train/deepspeed/{strategy}.json"
    keys = {"run.deepspeed": deepspeed, "run.gradient_checkpointing": ["language_model", "projector"]}
    two = stage_2(2, **keys)
    assert (two["ranks"], two["zero_stage"]) == (2, None if strategy == "ddp" else 3)
    compare(nothing_checkpointed, two, steps=2)


@pytest.fixture
def counting(monkeypatch) -> CompileCounterWithBackend:
    """The compiler without its last step, which makes C++ of a graph and costs minutes on a busy machine."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    monkeypatch.setattr(recompute_compile, "BACKEND", counter)
    yield counter
    torch._dynamo.reset()


def test_compiled_layers_have_the_same_loss_and_gradients(step, counting):
    """Both components compiled, and checkpointed as by default."""
    _, loss, gradients = step(counted=False)
    assert counting.frame_count == 0
    _, its_loss, its_gradients = step(counted=False, **{"run.compile": True})
    assert 2 <= counting.frame_count <= 6  # for ten layers: the first of each kind has inputs of its own kind
    assert its_loss == pytest.approx(loss, rel=1e-6)
    assert set(its_gradients) == set(gradients)
    for name, gradient in gradients.items():
        torch.testing.assert_close(
            its_gradients[name], gradient, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_a_compiled_run_leaves_a_plain_checkpoint(tiny_recipe, counting):
    plain = train_once(tiny_recipe("1", **{"run.output_dir": tiny_recipe("1").run.output_dir + "-plain"}))
    compiled = train_once(tiny_recipe("1", **{"run.compile": ["vision_tower"]}))
    assert 0 < counting.frame_count < 4  # batches of other sizes need no other code, nor do the four layers
    assert set(compiled) == set(plain)
    for name, weight in plain.items():
        torch.testing.assert_close(compiled[name], weight, rtol=0, atol=2e-5, msg=name)


def test_held_out_samples_compile_nothing(tiny_recipe, counting, data_folder):
    """Answers would use up the versions that torch keeps of a layer, and training would go on uncompiled."""
    evaluation = {"eval.data": f"{data_folder}/captions.json", "eval.answers": 2, "eval.max_new_tokens": 2}
    trainer = prepare(tiny_recipe("1", **{"run.compile": True, **evaluation})).trainer
    assert trainer.evaluate()["eval_loss"] > 0
    assert (Path(trainer.args.output_dir) / "eval/step_0.jsonl").is_file()
    assert counting.frame_count == 0


def train_once(recipe) -> dict[str, torch.Tensor]:
    stage = prepare(recipe)
    train(stage.trainer)
    save(stage, worker.manifest_of(stage))
    _, loading = LlavaOVManagerForConditionalGeneration.from_pretrained(recipe.run.output_dir, output_loading_info=True)
    assert not any(loading.values()), loading
    return load_file(f"{recipe.run.output_dir}/model.safetensors")


def test_combinations_that_cannot_work_are_named(tiny_recipe, monkeypatch):
    zero3 = {"run.deepspeed": "scripts/train/deepspeed/zero3.json"}
    nf4 = {"lora.base": "nf4", "components.language_model.lora": True, "components.language_model.trained": True}
    for keys, message in (
        ({"run.compile": True} | zero3, r"stage 3 gathers weights between .* pass --run.compile false"),
        ({"run.compile": ["vision_tower"]} | nf4, "cannot compile 4-bit weights"),
        (
            {"run.gradient_checkpointing": ["projector", "projector"]},
            "run.gradient_checkpointing names projector twice",
        ),
    ):
        with pytest.raises(LlavaError, match=message):
            check_recipe(tiny_recipe("1", **keys), 1, dry_run=True)
    check_recipe(tiny_recipe("1", **{"run.compile": True}), 1, dry_run=False)
    monkeypatch.setattr(checks.shutil, "which", lambda name: None)
    with pytest.raises(LlavaError, match=r"run.compile needs a C\+\+ compiler"):
        check_recipe(tiny_recipe("1", **{"run.compile": True}), 1, dry_run=False)


@pytest.mark.parametrize(
    ("value", "expected"),
    [("true", True), ("false", False), ("[language_model]", ["language_model"]), ("[]", [])],
)
def test_keys_on_the_command_line(tiny_keys, value, expected):
    keys = tiny_keys("1", **{"run.gradient_checkpointing": value, "run.output_dir": "out"})
    found = load_recipe("scripts/train/recipes/mllm/stage1.yaml", "grid_manager", keys=keys).run.gradient_checkpointing
    assert json.dumps(found) == json.dumps(expected)


@pytest.mark.parametrize("value", ["[managers]", "sometimes"])
def test_a_wrong_value_names_what_there_is(tiny_keys, value):
    keys = tiny_keys("1", **{"run.gradient_checkpointing": value, "run.output_dir": "out"})
    with pytest.raises(LlavaError, match=r"run.gradient_checkpointing must be .*one of vision_tower, projector"):
        load_recipe("scripts/train/recipes/mllm/stage1.yaml", "grid", keys=keys)
