"""Started by test_distributed.py on every rank: trains a recipe and writes down every gradient and loss.

worker.py RECIPE ARM KEYS OUT     KEYS: JSON of dotted keys. OUT: folder for gradients.safetensors and facts.json.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import TrainerCallback

from llava.train.folders.manifest import start_manifest
from llava.train.rank import end_with
from llava.train.ranks.preflight import report
from llava.train.ranks.process_group import leave_process_group, rank
from llava.train.recipe.load import load_recipe
from llava.train.stage import Stage, prepare, save, train


class GradientRecorder(TrainerCallback):
    """Full gradients of every step, averaged over ranks, before the optimizer uses them."""

    def __init__(self, trainer):
        self.trainer = trainer
        self.gradients = {}

    def on_train_begin(self, args, state, control, **kwargs):
        """DeepSpeed's engine steps within backward, so the recorder goes in front of its step."""
        engine = self.trainer.deepspeed
        if engine is not None:
            step = engine.step
            engine.step = lambda *arguments, **keywords: (self.record(), step(*arguments, **keywords))[1]

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        if self.trainer.deepspeed is None:
            self.record()

    def record(self):
        for name, parameter in self.trainer.model.named_parameters():
            if parameter.requires_grad:
                self.gradients[f"{self.trainer.state.global_step}/{name}"] = self.full_gradient(parameter).clone()

    def full_gradient(self, parameter):
        if self.trainer.deepspeed is None:
            return parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
        from deepspeed.utils import safe_get_full_grad

        return safe_get_full_grad(parameter)


def manifest_of(stage: Stage) -> dict:
    """What run_stage notes before it trains, of this process alone."""
    return start_manifest(stage.recipe, stage.plan, stage.trainer.components, stage.mixture, [report(stage.recipe)])


def main(recipe: str, arm: str, keys: str, out: str) -> None:
    stage = prepare(load_recipe(recipe, arm, keys=json.loads(keys)))
    trainer = stage.trainer
    recorder = GradientRecorder(trainer)
    trainer.add_callback(recorder)
    train(trainer)
    groups = [[group["component"], group["initial_lr"]] for group in trainer.optimizer.param_groups]
    engine = type(trainer.model_wrapped).__name__
    zero_stage = trainer.model_wrapped.zero_optimization_stage() if engine == "DeepSpeedEngine" else None
    facts = {"engine": engine, "zero_stage": zero_stage, "groups": groups, "ranks": trainer.args.world_size}
    save(stage, manifest_of(stage))
    if rank() == 0:
        save_file(recorder.gradients, f"{out}/gradients.safetensors")
        Path(out, "facts.json").write_text(json.dumps(facts))
    leave_process_group()


if __name__ == "__main__":
    end_with(lambda: main(*sys.argv[1:]))
