"""What runs on every rank of the tests with many runs: trains a recipe and writes down what it did."""

import json
from pathlib import Path
from unittest import mock

import torch
from safetensors.torch import save_file
from transformers import TrainerCallback

import llava.train.mllm.data
from llava.data.collator import Collator
from llava.data.sampler import LengthGroupedSampler
from llava.train.ranks.process_group import leave_process_group, rank
from llava.train.recipe.load import load_recipe
from llava.train.stage import prepare, train
from tests.train.worker import GradientRecorder


def record_mixed(recipe: str, arm: str, keys: dict, out: Path) -> None:
    """Trains on the samples in their stored order: each micro-batch of rank 0, then that of rank 1, and so on.

    Writes per rank the loss and the tower's forward passes of each micro-batch, and all gradients of each step.
    """
    torch.set_num_threads(1)
    trainer = prepare(load_recipe(recipe, arm, keys=keys)).trainer
    gradients = GradientRecorder(trainer)
    trainer.add_callback(gradients)
    micro_batches = MicroBatchRecorder(trainer)
    with mock.patch.object(llava.train.mllm.data, "LengthGroupedSampler", StoredOrder):
        train(trainer)
    engine = type(trainer.model_wrapped).__name__
    facts = {
        "engine": engine,
        "zero_stage": trainer.model_wrapped.zero_optimization_stage() if engine == "DeepSpeedEngine" else None,
        "losses": [loss.item() for loss in micro_batches.losses],
        "tower_forwards": micro_batches.tower_forwards,
    }
    Path(out, f"facts-{rank()}.json").write_text(json.dumps(facts))
    if rank() == 0:
        save_file(gradients.gradients, f"{out}/gradients.safetensors")
    leave_process_group()


def record_evaluation(recipe: str, arm: str, keys: dict, samples: list[int], out: Path) -> None:
    """Trains a step, then writes the losses of samples that are evaluated one by one, every rank its own.

    samples: indices, those of the ranks taking turns.
    """
    torch.set_num_threads(1)
    stage = prepare(load_recipe(recipe, arm, keys=keys))
    trainer = stage.trainer
    train(trainer)
    model = trainer.model_wrapped
    model.eval()
    collator = Collator(stage.processor.tokenizer.pad_token_id)
    losses = []
    for index in samples[rank() :: trainer.args.world_size]:
        batch = collator([trainer.train_dataset[index]])
        del batch["samples"]
        with torch.no_grad():
            losses.append(model(**batch).loss.item())
    Path(out, f"facts-{rank()}.json").write_text(json.dumps({"losses": losses}))
    leave_process_group()


def record_losses(
    recipe: str, arm: str, overrides: list[str], keys: dict, out: Path, stop_after: int | None = None
) -> None:
    """Trains as a stage does and writes the loss of each step, and by what it was trained.

    stop_after: the step, at which a checkpoint is due, behind which this start ends.
    """
    torch.set_num_threads(1)
    trainer = prepare(load_recipe(recipe, arm, overrides, keys)).trainer
    trainer.add_callback(StopAfter(stop_after))
    train(trainer)
    steps = [entry for entry in trainer.state.log_history if "loss" in entry]
    facts = {
        "engine": type(trainer.model_wrapped).__name__,
        "ranks": trainer.args.world_size,
        "losses": [entry["loss"] for entry in steps],
        "grad_norms": [entry["grad_norm"] for entry in steps],
        "held_out": [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry],
        "padding": [entry["padding"] for entry in steps],
        "crops": [entry["crops"] for entry in steps],
        "samples": len(trainer.train_dataset),
    }
    if rank() == 0:
        Path(out, "facts.json").write_text(json.dumps(facts))
    leave_process_group()


class StopAfter(TrainerCallback):
    """Ends the training behind a step; None for not."""

    def __init__(self, step: int | None):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop |= state.global_step == self.step


class StoredOrder(LengthGroupedSampler):
    """Samples as they are stored."""

    def __iter__(self):
        return iter(range(len(self)))


class MicroBatchRecorder:
    """losses: of each micro-batch, its share of the step's loss. tower_forwards: how often the tower ran in each."""

    def __init__(self, trainer):
        self.losses: list[torch.Tensor] = []
        self.tower_forwards: list[int] = []
        compute_loss = trainer.compute_loss

        def recorded(*arguments, **keywords):
            self.tower_forwards.append(0)
            loss = compute_loss(*arguments, **keywords)
            self.losses.append(loss.detach() / trainer.args.world_size)  # the ranks' gradients are averaged
            return loss

        trainer.compute_loss = recorded
        trainer.model.model.vision_tower.register_forward_hook(self._count)

    def _count(self, *_) -> None:
        self.tower_forwards[-1] += 1


def record_evaluations(recipe: str, arm: str, keys: dict, out: Path) -> None:
    """Trains as a stage does, which evaluates, and writes what was logged; the answers lie in the working folder."""
    torch.set_num_threads(1)
    trainer = prepare(load_recipe(recipe, arm, keys=keys)).trainer
    train(trainer)
    if rank() == 0:
        Path(out, "facts.json").write_text(json.dumps(trainer.state.log_history))
    leave_process_group()
