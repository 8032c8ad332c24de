"""transformers' Trainer with checkpoints that are complete or absent, a stop at a signal, and a guard of its steps."""

import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import Trainer, TrainerCallback

from llava.sizes import in_bytes
from llava.train.folders.interim import (
    checkpoints_folder,
    complete_checkpoints,
    finish_checkpoint,
    read_mark,
    start_checkpoint,
)
from llava.train.folders.reshape import set_states
from llava.train.folders.stage_folder import write_model
from llava.train.loop.components import full_shape
from llava.train.loop.guard import Guard
from llava.train.loop.stop import StopRequest, heed_parent_alone
from llava.train.loop.totals import Totals
from llava.train.ranks.process_group import gathered
from llava.train.recipe.schema import RunRecipe

WRITE_ERRORS = (OSError, RuntimeError, SafetensorError)  # torch.save raises RuntimeError when a disk is full
STATE_BYTES = 12  # of a trained parameter: its float32 copy and AdamW's two moments


class ResumableTrainer(Trainer):
    """Writes checkpoints while it trains, in the format of the Trainer and of DeepSpeed.

    Where one cannot be written, on any rank, nothing of it stays, a line says so and training goes on.

    Args:
        run: when to write, where, and how many to keep.
        processor: saved with the weights, so that a stage can start from a checkpoint.
        *args, **kwargs: the Trainer's.
    """

    def __init__(self, *args, run: RunRecipe, processor, **kwargs):
        super().__init__(*args, **kwargs)
        self.run = run
        self.processor = processor
        self.facts: dict = {}  # see resume_facts; set before training
        self.last_saved: Path | None = None  # known on the first rank
        self.joined_states: Path | None = None  # where another number of processes left its optimizer's
        self.guard = Guard(Path(f"{run.output_dir}.nonfinite"), self.args.device)
        self.totals = Totals(self.args.device)
        self.stop_request = StopRequest()
        self.stopped_by = 0  # the signal that ended training early
        self.requests = [0.0, 0.0]  # what the ranks agreed on in this step: a signal's number, and that time is up
        self.failures: list[str] = []
        self.add_callback(SaveAndStop(self))

    def get_batch_samples(self, *args):
        batches, num_items = super().get_batch_samples(*args)
        self.totals.count(batches)
        self.guard.begin(batches)
        return batches, num_items

    def training_step(self, *args, **kwargs) -> torch.Tensor:
        loss = super().training_step(*args, **kwargs)
        self.guard.losses.append(loss)
        self.totals.add_loss(loss)
        return loss

    def _get_grad_norm(self, model, grad_norm=None):
        """Called once per step, before the optimizer's own (DeepSpeed has stepped, unless the norm was not finite)."""
        grad_norm = super()._get_grad_norm(model, grad_norm)
        minutes = self.run.save_minutes
        overdue = minutes is not None and time.monotonic() - self.saved_at >= 60 * minutes
        requests = self.stop_request.signal, overdue
        self.requests = self.guard.agree(self.state.global_step + 1, grad_norm, *requests)
        return grad_norm

    def _get_dataloader(self, *args, **kwargs):
        loader = super()._get_dataloader(*args, **kwargs)
        base = loader.base_dataloader
        base.worker_init_fn = partial(_init_worker, base.worker_init_fn)
        return loader

    def _init_training_state(self, max_steps, *args, **kwargs):
        started = super()._init_training_state(max_steps, *args, **kwargs)
        self.state.compute_steps(self.args, max_steps)  # a checkpoint's state has those of the run that wrote it
        return started

    def _run_epoch(self, *args, epoch: int, **kwargs):
        # accelerate's loader that skips what was seen does not hand the epoch to the sampler on several processes
        self.train_sampler.set_epoch(epoch)
        return super()._run_epoch(*args, epoch=epoch, **kwargs)

    def _prepare_for_training(self, max_steps, train_dataloader, resume_from_checkpoint):
        if self.joined_states is None:
            return super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        self._load_from_checkpoint(resume_from_checkpoint)
        prepared = super()._prepare_for_training(max_steps, train_dataloader, None)
        set_states(self.model, self.deepspeed.optimizer, self.state.global_step, self.joined_states)
        self._load_optimizer_and_scheduler(resume_from_checkpoint)  # DeepSpeed's part is done; this is the scheduler
        for group, rate in zip(self.optimizer.param_groups, self.lr_scheduler.get_last_lr()):
            group["lr"] = rate
        return prepared

    def gather_weights(self) -> dict[str, torch.Tensor]:
        """The model's weights, whole on the first rank; every rank calls it. Tied weights are there once."""
        weights = self.accelerator.get_state_dict(self.model_wrapped)
        if self.args.should_save:
            for name in self.model.all_tied_weights_keys:
                weights.pop(name, None)  # ZeRO-2 hands out copies, which would be saved twice
        return weights

    def joined_totals(self) -> dict:
        """What the run has done so far, on the first rank over all its starts; every rank calls it."""
        return self.totals.joined(gathered([self.totals.own()]))

    def _get_output_dir(self, trial) -> str:
        """Where the Trainer puts checkpoint-STEP."""
        return str(checkpoints_folder(self.run.output_dir) / "writing")

    def _save_checkpoint(self, model, trial) -> None:
        """Every rank writes its part; the first puts the whole in place if all could."""
        started = time.monotonic()
        self.failures = []
        if self.args.should_save:
            self._attempt(self._start)
        if not gathered(self.failures):
            try:
                super()._save_checkpoint(model, trial)
            except OSError as error:
                self.failures.append(str(error))
        failures, totals = gathered(self.failures), self.joined_totals()
        if self.args.should_save:
            self._finish(failures, totals, started)
        self.accelerator.wait_for_everyone()
        self.saved_at = time.monotonic()

    def _start(self) -> None:
        folder = start_checkpoint(self.run.output_dir)
        last = next(iter(complete_checkpoints(folder.parent)), None)
        if last is not None:
            needed = sum(read_mark(last)["files"].values())
        else:
            parameters = list(self.model.parameters())
            copies = 2 if self.is_deepspeed_enabled else 1  # DeepSpeed writes the weights once more
            needed = sum(copies * p.element_size() * full_shape(p).numel() for p in parameters)
            needed += sum(STATE_BYTES * full_shape(p).numel() for p in parameters if p.requires_grad)
        free = shutil.disk_usage(folder).free
        if free < needed:
            raise OSError(f"it needs about {in_bytes(needed)}, {in_bytes(free)} are free")

    def _finish(self, failures: list[str], totals: dict, started: float) -> None:
        step, folder = self.state.global_step, Path(self._get_output_dir(None))
        if not failures:
            facts = {"step": step, "totals": totals, **self.facts}
            self._attempt(self._check_shared, folder / f"checkpoint-{step}")
            try:
                if not self.failures:
                    self.last_saved = finish_checkpoint(folder, facts, self.run.keep_last)
            except OSError as error:
                self.failures.append(str(error))
            failures = self.failures
        if failures:
            shutil.rmtree(folder, ignore_errors=True)
            kept = self.last_saved or "none yet"
            print(f"no checkpoint after step {step}: {failures[0]}; the last one is {kept}", flush=True)
        else:
            print(f"checkpoint {self.last_saved} ({time.monotonic() - started:.1f} s)", flush=True)

    def _check_shared(self, written: Path) -> None:
        found = len(list(written.glob("rng_state*.pth")))
        if found != self.args.world_size:
            ranks = self.args.world_size
            raise OSError(f"{found} of {ranks} ranks' states are in {written}; is it on a disk that all nodes share?")

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        weights = self.gather_weights()
        if self.args.should_save:
            self._attempt(write_model, self.model, self.processor, weights, Path(output_dir))

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.is_deepspeed_enabled:
            self._attempt(super()._save_optimizer_and_scheduler, output_dir)
            return
        # Between DeepSpeed's writes ranks wait for each other, so one that cannot write has to carry on.
        writer = self.deepspeed.checkpoint_engine
        write = writer.save
        writer.save = lambda state_dict, path: self._attempt(write, state_dict, path, path=path)
        try:
            super()._save_optimizer_and_scheduler(output_dir)
        finally:
            writer.save = write

    def _save_rng_state(self, output_dir: str) -> None:
        self._attempt(super()._save_rng_state, output_dir)

    def _attempt(self, write: Callable, *args, path: str | None = None) -> None:
        """Calls `write`, which exchanges nothing with other ranks; a failure is noted and `path` is removed."""
        try:
            write(*args)
        except WRITE_ERRORS as error:
            self.failures.append(" ".join(str(error).split()))
            if path is not None:
                Path(path).unlink(missing_ok=True)  # gives its space back to what is still to be written


class SaveAndStop(TrainerCallback):
    """Asks for a checkpoint when one is due, and for the end of training after a signal."""

    def __init__(self, trainer: ResumableTrainer):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        self.trainer.saved_at = time.monotonic()

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step >= state.max_steps:
            return  # the stage's own checkpoint comes next
        stop, overdue = self.trainer.requests
        steps = self.trainer.run.save_steps
        if stop or overdue or (steps is not None and state.global_step % steps == 0):
            control.should_save = True
        if stop:
            self.trainer.stopped_by = int(stop)
            control.should_training_stop = True
            control.should_evaluate = False  # whoever sent the signal does not wait that long


def _init_worker(init: Callable[[int], None] | None, worker: int) -> None:
    heed_parent_alone()
    if init is not None:
        init(worker)
