"""Writes interim checkpoints, whole or not at all, and lets training go on where one cannot be written."""

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError
from transformers import PreTrainedModel, ProcessorMixin

from llava.files import free_bytes
from llava.sizes import in_bytes
from llava.train.folders.interim import (
    COSTS,
    checkpoints_folder,
    complete_checkpoints,
    finish_checkpoint,
    read_mark,
    start_checkpoint,
    step_of,
    wait_for,
)
from llava.train.folders.resume_point import ResumePoint
from llava.train.folders.stage_folder import write_model
from llava.train.loop.components import full_shape, saved_bytes
from llava.train.ranks.process_group import gathered, rank
from llava.train.ranks.waiting import meet
from llava.train.recipe.running import RunRecipe

if TYPE_CHECKING:
    from deepspeed.runtime.checkpoint_engine.checkpoint_engine import CheckpointEngine

WRITE_ERRORS = (OSError, RuntimeError, SafetensorError)  # torch.save raises RuntimeError when a disk is full
MOMENTS = 8  # bytes of a trained parameter: AdamW's two
MASTER = 4  # bytes of a trained parameter: the float32 copy that ZeRO steps


class InterimSaver:
    """Writes checkpoints of a stage in the format of transformers' Trainer and of DeepSpeed.

    Every rank writes its part; the first puts the whole in place if all could. Where one cannot be written, on any
    rank, nothing of it stays, a line says so and training goes on.

    Args:
        run: where, and how many to keep.
        resume: what the run goes on from, and what its checkpoints note.
        model: for the room that a checkpoint needs.
        processor: saved with the weights, so that a stage can start from a checkpoint.
        costs: of each sample; saved, so that a file that is lost later changes no order.
        zero_stage: of DeepSpeed, which writes its own files too; None without it.
        processes: how many write.

    Attributes:
        last: the last checkpoint that is complete, known on the first rank; None before there is one.
        attempted: the step after which one was last written or tried, or that the run goes on from; 0 for none.
        folder: where the one that is being written stands, as checkpoint-STEP.
        with_weights: whether checkpoints hold the whole model beside the states.
    """

    def __init__(
        self,
        run: RunRecipe,
        resume: ResumePoint,
        model: PreTrainedModel,
        processor: ProcessorMixin,
        costs: np.ndarray,
        zero_stage: int | None,
        processes: int,
    ):
        self.run = run
        self.facts = resume.facts
        self.model = model
        self.processor = processor
        self.costs = costs
        self.zero_stage = zero_stage
        self.with_weights = zero_stage != 3 or run.interim_weights  # only ZeRO-3 has to gather them
        self.processes = processes
        self.last = resume.checkpoint
        self.attempted = 0 if resume.checkpoint is None else step_of(resume.checkpoint)
        self.folder = checkpoints_folder(run.output_dir) / "writing"
        self._failures: list[str] = []

    def save(self, step: int, write: Callable[[], None], totals: Callable[[], dict]) -> None:
        """Saves a checkpoint after `step`; every rank calls it.

        Args:
            step: how many the run has done.
            write: writes this rank's part, by `attempt` where it can fail between exchanges with other ranks.
            totals: what the run has done, over all ranks; see Totals.joined.
        """
        started = time.monotonic()
        self._failures, self.attempted = [], step
        if rank() == 0:
            self.attempt(self._start)
        if not gathered(self._failures):
            try:
                write()
            except OSError as error:
                self._failures.append(str(error))
        self.wait()
        failures, joined_totals = gathered(self._failures), totals()
        done = [self._finish(step, failures, joined_totals, started)] if rank() == 0 else []
        self.wait()
        if not gathered(done)[0] and int(os.environ.get("LOCAL_RANK", 0)) == 0:
            shutil.rmtree(self.folder, ignore_errors=True)  # where hosts share no disk each has its own

    def wait(self) -> None:
        """Returns on every rank when all have come here: one may write for longer than a collective may take."""
        meet(self.run.startup_timeout)

    def attempt(self, write: Callable, *args: Any, path: str | None = None) -> None:
        """Calls `write`, which exchanges nothing with other ranks; a failure is noted and `path` is removed."""
        try:
            write(*args)
        except WRITE_ERRORS as error:
            self._failures.append(" ".join(str(error).split()))
            if path is not None:
                Path(path).unlink(missing_ok=True)  # gives its space back to what is still to be written

    def write_weights(self, weights: dict[str, torch.Tensor], folder: str) -> None:
        """Writes the gathered weights, configuration and processor, on the first rank."""
        self.attempt(write_model, self.model, self.processor, weights, Path(folder))

    @contextmanager
    def each_write_attempted(self, engine: "CheckpointEngine") -> Iterator[None]:
        """Inside, each file that DeepSpeed's checkpoint engine writes is attempted by itself.

        Between its writes ranks wait for each other, so one that cannot write has to carry on.
        """
        write = engine.save
        engine.save = lambda state_dict, path: self.attempt(write, state_dict, path, path=path)
        try:
            yield
        finally:
            engine.save = write

    def _start(self) -> None:
        folder = start_checkpoint(self.run.output_dir)
        last = next(iter(complete_checkpoints(folder.parent)), None)
        needed = self.state_bytes() if last is None else sum(read_mark(last)["files"].values())
        free = free_bytes(folder)
        if free < needed:
            raise OSError(f"it needs about {in_bytes(needed)}, {in_bytes(free)} are free")

    def state_bytes(self) -> int:
        """Bytes of a checkpoint's weights and states: the model as a folder, and what DeepSpeed or AdamW have."""
        parameters = list(self.model.parameters())
        weights = sum(map(saved_bytes, parameters))
        frozen = sum(saved_bytes(p) for p in parameters if not p.requires_grad)
        trained = sum(full_shape(p).numel() for p in parameters if p.requires_grad)
        needed = weights if self.with_weights else 0
        if self.zero_stage is None:
            return needed + MOMENTS * trained
        # DeepSpeed writes the weights once more, of those that ZeRO-3 has cut only what is frozen.
        return needed + (frozen if self.zero_stage == 3 else weights) + (MASTER + MOMENTS) * trained

    def _finish(self, step: int, failures: list[str], totals: dict, started: float) -> bool:
        """Puts the checkpoint in place, if all went well; returns whether it did."""
        if not failures:
            written = self.folder / f"checkpoint-{step}"
            self.attempt(self._check_shared, written)
            self.attempt(np.save, written / COSTS, self.costs)
            try:
                if not self._failures:
                    facts = {"step": step, "totals": totals, **self.facts}
                    self.last = finish_checkpoint(self.folder, facts, self.run.keep_last)
            except OSError as error:
                self._failures.append(str(error))
            failures = self._failures
        if failures:
            kept = self.last or "none yet"
            print(f"no checkpoint after step {step}: {failures[0]}; the last one is {kept}", flush=True)
        else:
            print(f"checkpoint {self.last} ({time.monotonic() - started:.1f} s)", flush=True)
        return not failures

    def _check_shared(self, written: Path) -> None:
        def states() -> int:
            return len(list(written.glob("rng_state*.pth")))

        if not wait_for(lambda: states() == self.processes):
            seen = f"{states()} of {self.processes} ranks' states are in {written}"
            raise OSError(f"{seen}; is it on a disk that all nodes share?")
