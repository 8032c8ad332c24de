"""transformers' tensorboard log, which a full disk does not turn into the end of the training."""

from collections.abc import Callable

from transformers.integrations import TensorBoardCallback


class PatientTensorBoard(TensorBoardCallback):
    """Tells when its file cannot be written, and begins another one after the next checkpoint.

    What is logged in between is in trainer_state.json alone.
    """

    paused = False

    def on_train_begin(self, *args, **kwargs):
        self._attempt(super().on_train_begin, *args, **kwargs)

    def on_log(self, *args, **kwargs):
        self._attempt(super().on_log, *args, **kwargs)

    def on_save(self, *args, **kwargs):
        self.paused = False

    def on_train_end(self, *args, **kwargs):
        self._attempt(super().on_train_end, *args, **kwargs)

    def _attempt(self, write: Callable, *args, **kwargs) -> None:
        if self.paused:
            return
        try:
            write(*args, **kwargs)
        except OSError as error:
            print(f"tensorboard's file could not be written: {error}; training goes on", flush=True)
            self.paused, self.tb_writer = True, None  # the writer's thread has ended; it would raise forever
