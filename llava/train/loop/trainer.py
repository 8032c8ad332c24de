"""transformers' Trainer with our optimizer groups, our sampler, and logits at supervised positions only."""

from collections.abc import Iterator

import numpy as np
import torch
from torch.nn.functional import pad
from torch.nn.parallel import DistributedDataParallel
from transformers import ProgressCallback
from transformers.integrations import TensorBoardCallback

from llava.constants import IGNORE_INDEX
from llava.data.sampler import LengthGroupedSampler
from llava.mllm.cost import Cost
from llava.train.loop.components import Component
from llava.train.loop.evaluating import EvaluatingTrainer
from llava.train.loop.groups import OptimizerCheck
from llava.train.loop.optimizer import create_adamw
from llava.train.loop.step_log import StepLog, trained_peak_tflops
from llava.train.loop.tensorboard import PatientTensorBoard


class LlavaTrainer(EvaluatingTrainer):
    """Trains `components` of the model.

    Args:
        components: what trains at which rate; see split_components.
        lr_groups: `components` or `single`.
        cost: of training this model with these components; costs: of each sample, for grouping.
        *args, **kwargs: the EvaluatingTrainer's.
    """

    def __init__(self, *args, components: list[Component], lr_groups: str, cost: Cost, costs: np.ndarray, **kwargs):
        super().__init__(*args, **kwargs)
        self.remove_callback(ProgressCallback)
        self.add_callback(CompactProgress)
        if self.pop_callback(TensorBoardCallback) is not None:
            self.add_callback(PatientTensorBoard)
        self.optimizer_check = OptimizerCheck(components, lr_groups)
        self.add_callback(self.optimizer_check)
        vars(self.model.config).pop("use_cache", None)  # set by the Trainer; a checkpoint should not carry it
        self.components = components
        self.lr_groups = lr_groups
        self.costs = costs
        self.step_log = StepLog(self.accelerator, cost, trained_peak_tflops(self.args))

    def _prepare_for_training(self, *args):
        prepared = super()._prepare_for_training(*args)
        self.model.model.without_images = without_images(self.model_wrapped)
        return prepared

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            self.optimizer = create_adamw(self.components, self.lr_groups)
        return self.optimizer

    def _get_train_sampler(self, train_dataset=None) -> LengthGroupedSampler:
        self.train_sampler = LengthGroupedSampler(
            self.costs,
            self.train_dataset.is_multimodal,
            batch_size=self.args.per_device_train_batch_size,
            world_size=self.args.world_size,
            accumulation=self.args.gradient_accumulation_steps,
            seed=self.args.seed,
        )
        return self.train_sampler

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: torch.device):
        """The micro-batches of one step and the number of supervised tokens in them, over all ranks."""
        counted = self.step_log.counted(epoch_iterator)
        batches, supervised = super().get_batch_samples(counted, num_batches, device)
        # Skipped samples have no supervised token; a step of nothing else must give a loss of 0, not 0 / 0.
        return batches, supervised if supervised is None else supervised.clamp(min=1)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        inputs = supervised_only(inputs) | {"use_cache": False}
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def evaluate(self, *args, **kwargs) -> dict[str, float]:
        with self.step_log.left_out():
            return super().evaluate(*args, **kwargs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the learning rate of each group, the samples seen and what StepLog tells; the Trainer adds tokens."""
        if "learning_rate" in logs:
            groups = self.optimizer.param_groups
            progress = logs.pop("learning_rate") / groups[0]["initial_lr"]
            logs |= {f"lr/{group['component']}": group["initial_lr"] * progress for group in groups}
            logs["samples"] = self.state.global_step * self.get_total_train_batch_size(self.args)
            logs |= self.step_log.read()
        super().log(logs, start_time)


def without_images(wrapped: torch.nn.Module) -> str:
    """What a rank's micro-batch without any image must run of the vision side; see VisualFeaturesMixin.

    wrapped: the model as it trains. One process can be wrapped as many are. DDP, as it is set up here, waits for a
    gradient of everything that trains. ZeRO-2 adds up buckets that are filled as gradients come; offloaded, with any
    number of ranks, it uses a gradient of the step before again where a step brings none. So does ZeRO-3, which also
    gathers parameters, frozen ones too, on all ranks at once.
    """
    if hasattr(wrapped, "zero_optimization_stage"):
        return "all" if wrapped.zero_optimization_stage() == 3 else "trained"
    return "trained" if isinstance(wrapped, DistributedDataParallel) else "nothing"


class CompactProgress(ProgressCallback):
    """The Trainer's bar with the remaining time; a logged step is one short line above it."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_world_process_zero and self.training_bar is not None and "loss" in logs:
            self.training_bar.write(f"step {state.global_step}/{state.max_steps}  {progress_line(logs)}")

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        super().on_evaluate(args, state, control, **kwargs)
        if state.is_world_process_zero and self.training_bar is not None and "eval_loss" in metrics:
            line = f"held-out loss {metrics['eval_loss']:.4f}  ({metrics['eval_runtime']:.1f} s)"
            self.training_bar.write(f"step {state.global_step}/{state.max_steps}  {line}")


def progress_line(logs: dict[str, float]) -> str:
    """E.g. `loss 1.2345  grad 0.678  samples 512  tokens 98,304 (1,234/s)  lr projector 1.0e-03 managers 1.0e-03`."""
    rates = [f"{key.removeprefix('lr/')} {rate:.1e}" for key, rate in logs.items() if key.startswith("lr/")]
    speed = f"{logs['tokens_per_second']:,.0f}/s" + (f", mfu {logs['mfu']:.0%}" if "mfu" in logs else "")
    return (
        f"loss {logs['loss']:.4f}  grad {logs['grad_norm']:.3f}  samples {logs['samples']:,}  "
        f"tokens {logs['num_input_tokens_seen']:,} ({speed})  lr {' '.join(rates)}"
    )


def supervised_only(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A batch whose labels (B, L) are replaced by what restricts logits and loss to positions that predict a label.

    shift_labels: (B, L), the label of the next position. logits_to_keep: (B, L), where that is supervised.
    """
    labels = pad(batch["labels"][:, 1:], (0, 1), value=IGNORE_INDEX)
    others = {key: value for key, value in batch.items() if key != "labels"}
    return {**others, "shift_labels": labels, "logits_to_keep": labels != IGNORE_INDEX}
