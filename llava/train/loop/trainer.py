"""transformers' Trainer with this project's parts: it calls them, and what each does stands in its own file.

One step, from top to bottom (T: transformers' Trainer, which holds the loop; the names on the right are files here):

    get_batch_samples    T: the step's micro-batches and what their losses are divided by, over all ranks
                         a sample that cannot be used saves and ends the run on all ranks       bad_samples.py
                         each batch, and the time until it was there, is counted                step_log.py
                         origins of the samples leave the batches, are counted and noted        totals.py, guard.py
    training_step        of each micro-batch
      compute_loss       T: forward, the loss (of the MLLM at supervised positions alone, without logits)
                         T: backward; DeepSpeed steps here, in the step's last micro-batch
                         the loss is noted and counted                                          guard.py, totals.py
    _get_grad_norm       T: the norm, clipped
                         what is not finite ends the run; the ranks agree on stop and save,
                         and add up the step's tokens                                              guard.py
                         T: the optimizer's step, then the schedule's                           optimizer.py
    on_step_end          save? stop?                                                            callbacks.py
    log                  T: where a step is logged; rates, speed, work, memory                  step_log.py
    evaluate             where one is due: the loss of held-out samples, and answers            held_out_evaluation.py
                         or a task's metric (the two towers)
    _save_checkpoint     where one is due: whole or not at all                                  saver.py
"""

import io
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler
from transformers import PreTrainedModel, ProcessorMixin, ProgressCallback, Trainer, TrainingArguments
from transformers.integrations import TensorBoardCallback
from transformers.trainer_utils import EvalLoopOutput

from llava.data.collator import take_origins
from llava.data.dataset import Origin
from llava.train.estimate.heaviest import Heaviest
from llava.train.family import Evaluation, StageData
from llava.train.folders.reshape import set_states
from llava.train.folders.resume_point import ResumePoint
from llava.train.loop.bad_samples import agreed_error
from llava.train.loop.callbacks import CompactProgress, PatientTensorBoard, SaveAndStop
from llava.train.loop.components import Component
from llava.train.loop.guard import Guard
from llava.train.loop.optimizer import OptimizerCheck, create_adamw
from llava.train.loop.rehearsal import rehearse
from llava.train.loop.saver import InterimSaver
from llava.train.loop.step_log import StepLog, trained_peak_tflops
from llava.train.loop.stop import StopRequest, heed_parent_alone
from llava.train.loop.totals import Totals
from llava.train.ranks.process_group import gathered
from llava.train.recipe.running import RunRecipe

# Every method of transformers' Trainer that LlavaTrainer overrides, and why: what to look at when transformers is
# upgraded. tests/train/loop/test_overridden.py holds it against the class.
OVERRIDDEN = {
    "get_batch_samples": "ends at bad samples, counts the others, notes them for the guard; no 0 / 0 of skipped ones",
    "_get_num_items_in_batch": "a family may have losses that are divided by other numbers than that of labels",
    "training_step": "the guard and the totals get each micro-batch's loss",
    "compute_loss": "gives the model what its family says, such as to compute no logits",
    "_get_grad_norm": "is called once per step, before the optimizer's own: the guard's place",
    "_track_num_input_tokens": "the ranks tell each other once a step, see _get_grad_norm, not in every micro-batch",
    "log": "adds the rate of each group, samples, speed, work and memory",
    "create_optimizer": "one group per component and decay",
    "_get_train_sampler": "the family's order, such as batches of equal cost on all ranks, of one modality",
    "_get_eval_sampler": "the same for held-out samples",
    "_get_dataloader": "a loader's workers heed the signals of their parent alone",
    "_run_epoch": "accelerate's loader that skips what was seen hands not all samplers the epoch; keeps random states",
    "_init_training_state": "a checkpoint's state has logging and evaluation steps of the run that wrote it, not ours",
    "_prepare_for_training": "states of another number of processes; what a micro-batch without images must run",
    "evaluate": "takes no time of the steps and no random number; answers too",
    "evaluation_loop": "the family's numbers over all ranks; the Trainer's own is a mean of batches' means",
    "_get_output_dir": "interim checkpoints stand beside the stage's output",
    "_save_checkpoint": "is whole or not there, and one that cannot be written does not end the training",
    "save_model": "gathers the weights where that costs little or is asked for, and writes what a stage can start from",
    "_save_optimizer_and_scheduler": "a rank that cannot write carries on where the others wait for it",
    "_save_rng_state": "likewise",
}


class LlavaTrainer(Trainer):
    """Trains `components` of the model.

    Args:
        model: what trains.
        args: the Trainer's.
        data: what the model's family has made of the stage's data.
        components: what trains at which rate.
        lr_groups: `components` or `single`.
        run: where and when checkpoints are written, and how many are kept.
        processor: saved with the weights, so that a stage can start from a checkpoint.
        evaluates_at_start: before the first step, where the stage does not go on from a checkpoint.
        resume: what the run goes on from.
        heaviest: the micro-batch to try before the first step; None for none.
        started: when this start began, in seconds since 1970.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        args: TrainingArguments,
        data: StageData,
        *,
        components: list[Component],
        lr_groups: str,
        run: RunRecipe,
        processor: ProcessorMixin,
        evaluates_at_start: bool,
        resume: ResumePoint,
        heaviest: Heaviest | None,
        started: float,
    ):
        args.eval_on_start = evaluates_at_start and resume.checkpoint is None
        super().__init__(model, args, data.collator, data.dataset, data.held_out)
        vars(self.model.config).pop("use_cache", None)  # set by the Trainer; a checkpoint should not carry it
        self.data = data
        self.components = components
        self.lr_groups = lr_groups
        self.costs = data.costs if resume.costs is None else resume.costs
        self.resume = resume
        self.heaviest = heaviest
        self.train_sampler: Sampler | None = None  # made with the data loader
        self.guard = Guard(Path(f"{run.output_dir}.nonfinite"), args.device)
        self.totals = Totals(args.device, started, resume.totals)
        self.step_log = StepLog(self.accelerator, data.cost, data.count, trained_peak_tflops(args))
        self.saver = InterimSaver(run, resume, model, processor, self.costs, self.zero_stage, args.world_size)
        self.stop_request = StopRequest()
        self.save_and_stop = SaveAndStop(run, self.stop_request)
        self.optimizer_check = OptimizerCheck(components, lr_groups)
        self.tensorboard = PatientTensorBoard() if self.pop_callback(TensorBoardCallback) is not None else None
        self.remove_callback(ProgressCallback)
        for callback in (self.save_and_stop, CompactProgress(), self.tensorboard, self.optimizer_check):
            if callback is not None:
                self.add_callback(callback)
        self.evaluation: Evaluation | None = None if data.evaluation is None else data.evaluation(self)

    # The step

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: torch.device) -> tuple:
        """The micro-batches of one step and what their losses are divided by, such as all ranks' supervised tokens."""
        counted = self.step_log.counted(epoch_iterator)
        batches, items = super().get_batch_samples(counted, num_batches, device)
        origins = [take_origins(batch) for batch in batches]
        self._end_if_bad(origins)
        self.totals.count(origin for of_batch in origins for origin in of_batch)
        self.guard.begin(batches, origins)
        # Skipped samples have no supervised token; a step of nothing else must give a loss of 0, not 0 / 0.
        return batches, items.clamp(min=1) if isinstance(items, torch.Tensor) else items

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> torch.Tensor | dict | None:
        if self.data.items is None:
            return super()._get_num_items_in_batch(batch_samples, device)
        items = self.data.items(batch_samples)
        totals = self.accelerator.reduce(torch.tensor(list(items.values()), device=device))
        return dict(zip(items, totals.clamp(min=1)))

    def _end_if_bad(self, origins: list[list[Origin]]) -> None:
        """Raises BadSampleError on every rank where one has a sample that cannot be used, once the run is saved."""
        error = agreed_error(origins, self.args.device)
        if error is None:
            return
        step = self.state.global_step
        if step != self.saver.attempted:
            if step == self._epoch_began_after:  # the epoch's loader has drawn a number, as it will again
                torch.set_rng_state(self._random_state)
            self._save_checkpoint(self.model, None)
        raise error

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The loss of a micro-batch, its share of the step, for Guard and Totals, too."""
        loss = super().training_step(*args, **kwargs)
        self.guard.add_loss(loss)
        self.totals.add_loss(loss)
        return loss

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | dict | int | None = None,
    ) -> torch.Tensor | tuple:
        """The model's loss, of a batch as its family gives it to the model."""
        loss = super().compute_loss(model, self.data.inputs(inputs), return_outputs, num_items_in_batch)
        if not return_outputs and torch.is_grad_enabled() and not loss.requires_grad:
            loss.requires_grad_()  # of skipped samples alone: nothing that trains had a part, and backward does nothing
        return loss

    def _get_grad_norm(self, model: torch.nn.Module, grad_norm: float | None = None) -> float | torch.Tensor:
        """Called before the optimizer's step (DeepSpeed has stepped, unless the norm was not finite)."""
        grad_norm = super()._get_grad_norm(model, grad_norm)
        step = self.state.global_step + 1
        tokens = sum(map(self.data.tokens, self.guard.batches))
        tokens, *requests = zip(*self.guard.agree(step, grad_norm, tokens, *self.save_and_stop.requests()))
        self.state.num_input_tokens_seen += int(sum(tokens))
        self.save_and_stop.agree(*map(max, requests))
        return grad_norm

    def _track_num_input_tokens(self, inputs: dict) -> None:
        """Nothing: _get_grad_norm counts."""

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the learning rate of each group, the samples seen and what StepLog tells; the Trainer adds tokens."""
        if "learning_rate" in logs:
            groups = self.optimizer.param_groups
            progress = logs.pop("learning_rate") / groups[0]["initial_lr"]
            logs |= {f"lr/{group['component']}": group["initial_lr"] * progress for group in groups}
            logs["samples"] = self.state.global_step * self.get_total_train_batch_size(self.args)
            logs |= self.step_log.read()
        super().log(logs, start_time)

    # Before the first step

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW with a group for each component."""
        if self.optimizer is None:
            on_gpu, beta2 = self.args.device.type == "cuda", self.args.adam_beta2
            self.optimizer = create_adamw(self.components, self.lr_groups, on_gpu=on_gpu, beta2=beta2)
        return self.optimizer

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler:
        self.train_sampler = self.data.sampler(self.train_dataset, self.args, self.costs)
        return self.train_sampler

    def _get_eval_sampler(self, eval_dataset: Dataset) -> Sampler:
        return self.evaluation.sampler(self.args.seed)

    def _get_dataloader(self, *args: Any, **kwargs: Any) -> DataLoader:
        loader = super()._get_dataloader(*args, **kwargs)
        base = loader.base_dataloader
        base.worker_init_fn = partial(_init_worker, base.worker_init_fn)
        return loader

    def _init_training_state(self, max_steps: int, *args: Any, **kwargs: Any) -> tuple[int, int]:
        trained = super()._init_training_state(max_steps, *args, **kwargs)
        self.state.compute_steps(self.args, max_steps)
        return trained

    def _prepare_for_training(
        self, max_steps: int, train_dataloader: DataLoader, resume_from_checkpoint: str | None
    ) -> tuple[torch.nn.Module, DataLoader]:
        joined = self.resume.joined_states is not None
        with redirect_stdout(io.StringIO()):  # DeepSpeed's optimizer of ZeRO-1 tells each step of its own making
            from_checkpoint = None if joined else resume_from_checkpoint
            prepared = super()._prepare_for_training(max_steps, train_dataloader, from_checkpoint)
        if joined:
            set_states(self.model, self.deepspeed.optimizer, self.state.global_step, self.resume.joined_states)
            self._load_optimizer_and_scheduler(resume_from_checkpoint)  # DeepSpeed's part is done; this is the schedule
            for group, rate in zip(self.optimizer.param_groups, self.lr_scheduler.get_last_lr()):
                group["lr"] = rate
        self.data.when_wrapped(self.model, self.model_wrapped)
        if self.heaviest is not None:
            self._rehearse(self.heaviest)
        return prepared

    def _rehearse(self, heaviest: Heaviest) -> None:
        batch = self.data_collator([self.train_dataset[index] for index in heaviest.indices])
        take_origins(batch)
        items = max(heaviest.supervised, 1)
        if self.data.items is not None:
            items = self._get_num_items_in_batch([batch], self.args.device)
        batch = self._prepare_inputs(batch)

        def loss() -> torch.Tensor:
            with self.compute_loss_context_manager():
                return self.compute_loss(self.model_wrapped, batch, num_items_in_batch=items)

        rehearse(self.model_wrapped, self.optimizer, loss, self.accelerator, str(heaviest).split(maxsplit=1)[1])

    def _run_epoch(self, *args: Any, epoch: int, **kwargs: Any) -> None:
        self.train_sampler.set_epoch(epoch)
        self._epoch_began_after, self._random_state = self.state.global_step, torch.get_rng_state()
        super()._run_epoch(*args, epoch=epoch, **kwargs)

    # Held-out samples

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """The Trainer's metrics: `eval_loss`, time and speed. Then what else is due, such as answers."""
        with self.step_log.left_out(), self.evaluation.unnoticed():
            metrics = super().evaluate(*args, **kwargs)
            self.evaluation.after(self)
        return metrics

    def evaluation_loop(
        self, dataloader: DataLoader, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any
    ) -> EvalLoopOutput:
        """The family's numbers over all ranks."""
        self.model_wrapped.eval()
        self.callback_handler.eval_dataloader = dataloader
        measured = self.evaluation.metrics(self, dataloader)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in measured.items()}
        return EvalLoopOutput(predictions=None, label_ids=None, metrics=metrics, num_samples=len(self.eval_dataset))

    # Checkpoints

    @property
    def zero_stage(self) -> int | None:
        """DeepSpeed's, None without it."""
        if not self.args.deepspeed:
            return None
        return self.args.hf_deepspeed_config.get_value("zero_optimization.stage")

    def gather_weights(self) -> dict[str, torch.Tensor]:
        """The model's weights, whole on the first rank, nothing on the others; every rank calls it.

        Tied weights are there once.
        """
        if self.zero_stage != 3 and not self.args.should_save:
            return {}  # nothing is exchanged, and under ZeRO-2 a copy would be made
        weights = self.accelerator.get_state_dict(self.model_wrapped)
        if not self.args.should_save:
            return {}
        for name in self.model.all_tied_weights_keys:
            weights.pop(name, None)  # ZeRO-2 hands out copies, which would be saved twice
        return weights

    def joined_totals(self) -> dict:
        """What the run has done so far, on every rank over all ranks and starts; every rank calls it."""
        return self.totals.joined(gathered([self.totals.of_rank()]))

    def _get_output_dir(self, trial: Any) -> str:
        return str(self.saver.folder)

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        self.saver.save(self.state.global_step, partial(super()._save_checkpoint, model, trial), self.joined_totals)
        self.accelerator.wait_for_everyone()

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Writes weights and processor on the first rank, where a checkpoint has them; every rank calls it."""
        if not self.saver.with_weights:
            return
        weights = self.gather_weights()
        if self.args.should_save:
            self.saver.write_weights(weights, output_dir)
        self.saver.wait()

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self.is_deepspeed_enabled:
            with self.saver.each_write_attempted(self.deepspeed.checkpoint_engine):
                super()._save_optimizer_and_scheduler(output_dir)
        else:
            self.saver.attempt(super()._save_optimizer_and_scheduler, output_dir)

    def _save_rng_state(self, output_dir: str) -> None:
        self.saver.attempt(super()._save_rng_state, output_dir)


def _init_worker(init: Callable[[int], None] | None, worker: int) -> None:
    heed_parent_alone()
    if init is not None:
        init(worker)
