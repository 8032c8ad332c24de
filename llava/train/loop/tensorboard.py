"""transformers' tensorboard log, in one folder a run, which a full disk does not turn into the end of the training."""

from collections.abc import Callable
from pathlib import Path

from transformers.integrations import TensorBoardCallback


class PatientTensorBoard(TensorBoardCallback):
    """Goes on in the folder of the run's earlier starts; what they logged and is trained on again is shown once.

    Tells when its file cannot be written, and begins another one after the next checkpoint. What is logged in between
    is in trainer_state.json alone.
    """

    paused = False
    purge_step: int | None = None  # from which on a new file replaces those before it

    def on_train_begin(self, args, state, control, **kwargs):
        folders = sorted(Path(args.output_dir, "runs").glob("*/"))
        if self.logging_dir is None and folders:
            self.logging_dir = str(folders[-1])
        self.purge_step = state.global_step + 1 if state.global_step else 0
        self._attempt(super().on_train_begin, args, state, control, **kwargs)

    def on_log(self, *args, **kwargs):
        self._attempt(super().on_log, *args, **kwargs)

    def on_save(self, *args, **kwargs):
        self.paused = False

    def on_train_end(self, *args, **kwargs):
        self._attempt(super().on_train_end, *args, **kwargs)

    def _init_summary_writer(self, args):
        self.tb_writer = self._SummaryWriter(log_dir=self.logging_dir, purge_step=self.purge_step)
        self.purge_step = None

    def _attempt(self, write: Callable, *args, **kwargs) -> None:
        if self.paused:
            return
        try:
            write(*args, **kwargs)
        except OSError as error:
            print(f"tensorboard's file could not be written: {error}; training goes on", flush=True)
            self.paused, self.tb_writer = True, None  # the writer's thread has ended; it would raise forever
