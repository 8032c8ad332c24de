"""What transformers' Trainer calls between steps: the stop and the checkpoints, the progress bar, tensorboard's log.

The check of the optimizer is a callback too; it stands beside the optimizer, in optimizer.py.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import ProgressCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import TensorBoardCallback

from llava.checkpoint.folder import TENSORBOARD
from llava.train.loop.stop import StopRequest
from llava.train.recipe.running import RunRecipe


class SaveAndStop(TrainerCallback):
    """Asks for a checkpoint when one is due, and for the end of training after a signal.

    Ranks get signals, and see that time is up, at moments of their own: each tells its `requests`, they agree on them
    once per step (see Guard.agree), and the step's end follows what was agreed.

    Args:
        run: how often a checkpoint is due.
        stop_request: notes the signals that this process gets.

    Attributes:
        stopped_by: the signal that ended training early; 0 for none.
    """

    def __init__(self, run: RunRecipe, stop_request: StopRequest):
        self.run = run
        self.stop_request = stop_request
        self.stopped_by = 0
        self._saved_at = time.monotonic()
        self._signal = self._overdue = 0.0  # as the ranks agreed in this step

    def requests(self) -> tuple[int, bool]:
        """This rank's signal, 0 for none, and whether run.save_minutes are over."""
        minutes = self.run.save_minutes
        overdue = minutes is not None and time.monotonic() - self._saved_at >= 60 * minutes
        return self.stop_request.signal, overdue

    def agree(self, signal: float, overdue: float) -> None:
        """Takes the largest of all ranks' requests."""
        self._signal, self._overdue = signal, overdue

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """The run's minutes count from here."""
        self._saved_at = time.monotonic()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """The run's minutes count anew."""
        self._saved_at = time.monotonic()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Sets the Trainer's control as the ranks have agreed."""
        if state.global_step >= state.max_steps:
            return  # the stage's own checkpoint comes next
        steps = self.run.save_steps
        if self._signal or self._overdue or (steps is not None and state.global_step % steps == 0):
            control.should_save = True
        if self._signal:
            self.stopped_by = int(self._signal)
            control.should_training_stop = True
            control.should_evaluate = False  # whoever sent the signal does not wait that long


class CompactProgress(ProgressCallback):
    """The Trainer's bar with the remaining time; a logged step is one short line above it."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict | None = None,
        **kwargs: Any,
    ) -> None:
        """A line of a step that trained."""
        if state.is_world_process_zero and self.training_bar is not None and "loss" in logs:
            self.training_bar.write(f"step {state.global_step}/{state.max_steps}  {progress_line(logs)}")

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict | None = None,
        **kwargs: Any,
    ) -> None:
        """A line of the held-out loss, and of what else is measured."""
        super().on_evaluate(args, state, control, **kwargs)
        measured = {name.removeprefix("eval_"): value for name, value in metrics.items() if name.startswith("eval_")}
        seconds = measured.pop("runtime", 0.0)
        shown = [f"{name} {value:.4f}" for name, value in measured.items() if not name.endswith("_per_second")]
        if state.is_world_process_zero and self.training_bar is not None and shown:
            line = f"held-out {', '.join(shown)}  ({seconds:.1f} s)"
            self.training_bar.write(f"step {state.global_step}/{state.max_steps}  {line}")


def progress_line(logs: dict[str, float]) -> str:
    """E.g. `loss 1.2345  grad 0.678  samples 512  tokens 98,304 (1,234/s)  lr projector 1.0e-03 fusion 1.0e-03`."""
    rates = [f"{key.removeprefix('lr/')} {rate:.1e}" for key, rate in logs.items() if key.startswith("lr/")]
    speed = f"{logs['tokens_per_second']:,.0f}/s" + (f", mfu {logs['mfu']:.0%}" if "mfu" in logs else "")
    return (
        f"loss {logs['loss']:.4f}  grad {logs['grad_norm']:.3f}  samples {logs['samples']:,}  "
        f"tokens {logs['num_input_tokens_seen']:,} ({speed})  lr {' '.join(rates)}"
    )


class PatientTensorBoard(TensorBoardCallback):
    """transformers' tensorboard log, in one folder a run, which a full disk does not turn into the end of the training.

    Goes on in the folder of the run's earlier starts; what they logged and is trained on again is shown once.
    Tells when its file cannot be written, and begins another one after the next checkpoint. What is logged in between
    is in trainer_state.json alone.
    """

    paused = False
    purge_step: int | None = None  # from which on a new file replaces those before it

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Goes on in the folder of the run's earlier starts."""
        folders = sorted(Path(args.output_dir, TENSORBOARD).glob("*/"))
        if self.logging_dir is None and folders:
            self.logging_dir = str(folders[-1])
        self.purge_step = state.global_step + 1 if state.global_step else 0
        self._attempt(super().on_train_begin, args, state, control, **kwargs)

    def on_log(self, *args: Any, **kwargs: Any) -> None:
        """Logs, unless the file cannot be written."""
        self._attempt(super().on_log, *args, **kwargs)

    def on_save(self, *args: Any, **kwargs: Any) -> None:
        """Another try: a checkpoint could be written."""
        self.paused = False

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        """Closes the file, if it can be written."""
        self._attempt(super().on_train_end, *args, **kwargs)

    def _init_summary_writer(self, args: TrainingArguments) -> None:
        self.tb_writer = self._SummaryWriter(log_dir=self.logging_dir, purge_step=self.purge_step)
        self.purge_step = None

    def _attempt(self, write: Callable, *args: Any, **kwargs: Any) -> None:
        if self.paused:
            return
        try:
            write(*args, **kwargs)
        except OSError as error:
            print(f"tensorboard's file could not be written: {error}; training goes on", flush=True)
            self.paused, self.tb_writer = True, None  # the writer's thread has ended; it would raise forever
