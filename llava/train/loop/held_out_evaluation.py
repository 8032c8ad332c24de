"""The exact loss of held-out samples and answers to them, while a stage trains; training never notices."""

import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from accelerate import Accelerator

from llava.data.collator import take_origins
from llava.data.sampler import LengthGroupedSampler
from llava.errors import DataError
from llava.train.loop.answer_log import AnswerLog
from llava.train.loop.held_out import HeldOut
from llava.train.ranks.process_group import gathered, rank

if TYPE_CHECKING:
    from llava.train.loop.trainer import LlavaTrainer


class HeldOutEvaluation:
    """Evaluates held-out samples, over all ranks.

    Every sample was read before training. If one cannot be read later, no loss (or no answer) is told rather than one
    of other samples, a line says so, and training goes on.

    Args:
        held_out: what is evaluated.
        answer_log: where the answers go.
        accelerator: what connects the ranks.
        batch_size: samples of a rank at a time.
        compiled: the model's layers are compiled for training.
    """

    def __init__(
        self, held_out: HeldOut, answer_log: AnswerLog, accelerator: Accelerator, batch_size: int, compiled: bool
    ):
        self.held_out = held_out
        self.answer_log = answer_log
        self.accelerator = accelerator
        self.batch_size = batch_size
        self.compiled = compiled

    def sampler(self, seed: int) -> LengthGroupedSampler:
        """Batches as in training: the ranks have equally many, the last ones filled up with nothing."""
        return LengthGroupedSampler(
            self.held_out.costs,
            self.held_out.dataset.is_multimodal,
            batch_size=self.batch_size,
            world_size=self.accelerator.num_processes,
            seed=seed,
        )

    def unnoticed(self) -> AbstractContextManager:
        """See unnoticed."""
        return unnoticed(self.accelerator.device, self.compiled)

    def metrics(self, trainer: "LlavaTrainer", batches: Iterable[dict]) -> dict[str, float]:
        """The mean loss of all supervised tokens of all ranks; none where samples cannot be read."""
        loss = self.mean_loss(trainer.state.global_step, batches, partial(_loss_sums, trainer))
        return {} if loss is None else {"loss": loss}

    def after(self, trainer: "LlavaTrainer") -> None:
        """The answers."""
        together = trainer.model.model.without_images == "all"
        self.answer(trainer.state.global_step, trainer.model, trainer._prepare_inputs, together)

    def mean_loss(self, step: int, batches: Iterable[dict], sums_of: Callable[[dict], torch.Tensor]) -> float | None:
        """The mean over all supervised tokens of all ranks; None, which is told, where samples cannot be read.

        Args:
            step: of the training, for the message.
            batches: this rank's.
            sums_of: of a batch, float64 (2,): the sum of its tokens' losses, and how many they are.
        """
        device = self.accelerator.device
        sums, lost = torch.zeros(2, dtype=torch.float64, device=device), 0
        for batch in batches:
            lost += sum(origin.skipped for origin in take_origins(batch))
            sums += sums_of(batch)
        lost = self.accelerator.reduce(torch.tensor(lost, device=device)).item()
        loss, supervised = self.accelerator.reduce(sums).tolist()
        if lost:
            tell(step, f"no held-out loss: {lost} samples cannot be read any more")
            return None
        return loss / supervised

    def answer(self, step: int, model: torch.nn.Module, to_device: Callable[[dict], dict], together: bool) -> None:
        """Answers the prompts and logs what was answered; every rank calls it.

        The ranks agree before each batch that all could read theirs.

        Args:
            step: of the training.
            model: as `generate` takes it.
            to_device: puts a batch where the model is.
            together: all ranks answer the same, see held_out.py.
        """
        prompts = self.held_out.prompts
        if not len(prompts):
            return
        ranks, place = (1, 0) if together else (self.accelerator.num_processes, self.accelerator.process_index)
        answers = []
        for start in range(0, len(prompts), self.batch_size * ranks):
            indices = range(start, min(start + self.batch_size * ranks, len(prompts)))[place::ranks]
            batch, failures = None, []
            try:
                batch = self.held_out.batch(indices) if indices else None
            except DataError as error:
                failures = [str(error)]
            failures = gathered(failures)
            if failures:
                tell(step, f"no held-out answers: {failures[0]}")
                return
            if batch is not None:
                with self.accelerator.autocast():
                    answers += zip(indices, self.held_out.answers(model, to_device(batch), all_ranks=together))
        by_index = dict(reversed(gathered(answers)))  # the first rank's, where all have answered
        if rank() == 0:
            self.answer_log.write(step, [by_index[index] for index in range(len(prompts))])


def _loss_sums(trainer: "LlavaTrainer", batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """float64 (2,): the sum of the losses of a batch's supervised tokens, and how many they are."""
    batch = trainer._prepare_inputs(batch)
    supervised = len(batch["supervised_positions"])
    with torch.no_grad(), trainer.compute_loss_context_manager():
        # compute_loss multiplies by the number of ranks
        loss = trainer.compute_loss(trainer.model_wrapped, batch, num_items_in_batch=trainer.args.world_size)
    trainer.control = trainer.callback_handler.on_prediction_step(trainer.args, trainer.state, trainer.control)
    return torch.stack([loss.double(), loss.new_full((), supervised, dtype=torch.float64)])


def tell(step: int, message: str) -> None:
    """Says on the first rank what an evaluation could not do."""
    if rank() == 0:
        print(f"after step {step}: {message}; training goes on", flush=True)


@contextmanager
def unnoticed(device: torch.device, compiled: bool) -> Iterator[None]:
    """What happens inside changes no random number of the training, nor what it has compiled.

    compiled: the model's layers are compiled for training.
    """
    # Without gradients, or for a cache of keys, they would be compiled anew, until torch gives up, for training too.
    eager = torch.compiler.set_stance("force_eager") if compiled else nullcontext()
    with kept_random_state(device), eager:
        yield


@contextmanager
def kept_random_state(device: torch.device) -> Iterator[None]:
    """Puts all random generators back as they were: a data loader, for one, draws a number when it starts."""
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield
    random.setstate(states[0])
    np.random.set_state(states[1])
