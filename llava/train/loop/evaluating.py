"""transformers' Trainer with an exact loss of held-out samples and answers to them; training never notices."""

import random
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader
from transformers.trainer_utils import EvalLoopOutput

from llava.constants import IGNORE_INDEX
from llava.data.sampler import LengthGroupedSampler
from llava.errors import DataError
from llava.train.folders.stage_folder import ANSWERS
from llava.train.loop.answer_log import AnswerLog
from llava.train.loop.held_out import HeldOut
from llava.train.loop.resumable import ResumableTrainer
from llava.train.ranks.process_group import gathered


class EvaluatingTrainer(ResumableTrainer):
    """Evaluates held-out samples when the Trainer's arguments say so.

    Every sample was read before training. If one cannot be read later, no loss (or no answer) is told rather than one
    of other samples, a line says so, and training goes on.

    Args:
        held_out: what is evaluated; None for nothing.
        *args, **kwargs: the ResumableTrainer's.
    """

    def __init__(self, *args, held_out: HeldOut | None, **kwargs):
        super().__init__(*args, eval_dataset=held_out and held_out.dataset, **kwargs)
        self.held_out = held_out
        if held_out is not None:
            self.answer_log = AnswerLog(Path(self.args.output_dir) / ANSWERS, held_out)

    def evaluate(self, *args, **kwargs) -> dict[str, float]:
        """The Trainer's metrics: `eval_loss`, time and speed. Then the answers; see AnswerLog."""
        # Each layer's part of a cache would be compiled anew, until torch gives up, for the training too.
        compiled = torch.compiler.set_stance("force_eager") if self.run.compile else nullcontext()
        with kept_random_state(self.args.device), compiled:
            metrics = super().evaluate(*args, **kwargs)
            if len(self.held_out.prompts):
                self._answer()
        return metrics

    def _get_eval_sampler(self, eval_dataset) -> LengthGroupedSampler:
        """Batches as in training: the ranks have equally many, the last ones filled up with nothing."""
        return LengthGroupedSampler(
            self.held_out.costs,
            eval_dataset.is_multimodal,
            batch_size=self.args.per_device_eval_batch_size,
            world_size=self.args.world_size,
            seed=self.args.seed,
        )

    def evaluation_loop(
        self, dataloader: DataLoader, *args, metric_key_prefix: str = "eval", **kwargs
    ) -> EvalLoopOutput:
        """The mean loss of all supervised tokens of all ranks; the Trainer's own is a mean of batches' means."""
        dataset, model = self.held_out.dataset, self.model_wrapped
        model.eval()
        self.callback_handler.eval_dataloader = dataloader
        sums, lost = torch.zeros(2, dtype=torch.float64, device=self.args.device), 0
        for batch in dataloader:
            lost += sum(origin.skipped for origin in batch.pop("samples"))
            batch = self._prepare_inputs(batch)
            supervised = (batch["labels"][:, 1:] != IGNORE_INDEX).sum()
            with torch.no_grad(), self.compute_loss_context_manager():
                # compute_loss multiplies by the number of ranks
                loss = self.compute_loss(model, batch, num_items_in_batch=self.args.world_size)
            sums += torch.stack([loss.double(), supervised.double()])
            self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        lost = self.accelerator.reduce(torch.tensor(lost, device=self.args.device)).item()
        loss, supervised = self.accelerator.reduce(sums).tolist()
        metrics = {}
        if lost:
            self._tell(f"no held-out loss: {lost} samples cannot be read any more")
        else:
            metrics[f"{metric_key_prefix}_loss"] = loss / supervised
        return EvalLoopOutput(predictions=None, label_ids=None, metrics=metrics, num_samples=len(dataset))

    def _answer(self) -> None:
        """Every rank calls it, and the ranks agree before each batch that all could read theirs."""
        prompts, size = self.held_out.prompts, self.args.per_device_eval_batch_size
        partitioned = self.model.model.without_images == "all"
        ranks = 1 if partitioned else self.args.world_size
        found = []
        for start in range(0, len(prompts), size * ranks):
            indices = range(start, min(start + size * ranks, len(prompts)))[self.args.process_index % ranks :: ranks]
            batch, failures = None, []
            try:
                batch = self.held_out.batch(indices) if indices else None
            except DataError as error:
                failures = [str(error)]
            failures = gathered(failures)
            if failures:
                self._tell(f"no held-out answers: {failures[0]}")
                return
            if batch is not None:
                with self.accelerator.autocast():
                    texts = self.held_out.answers(self.model, self._prepare_inputs(batch), all_ranks=partitioned)
                found += zip(indices, texts)
        answers = dict(reversed(gathered(found)))  # the first rank's, where all have answered
        if self.args.should_save:
            self.answer_log.write(self, [answers[index] for index in range(len(prompts))])

    def _tell(self, message: str) -> None:
        if self.args.should_save:
            print(f"after step {self.state.global_step}: {message}; training goes on", flush=True)


@contextmanager
def kept_random_state(device: torch.device) -> Iterator[None]:
    """Puts all random generators back as they were: a data loader, for one, draws a number when it starts."""
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield
    random.setstate(states[0])
    np.random.set_state(states[1])
