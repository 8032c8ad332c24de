"""What a start of a stage goes on from: decided once, by the first rank, before the Trainer is built."""

import shutil
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from llava.data.content import content_digest
from llava.data.record_store import RecordStore
from llava.train.folders.interim import (
    check_data_unchanged,
    checkpoints_folder,
    read_mark,
    resume_facts,
)
from llava.train.folders.reshape import join_states
from llava.train.recipe.schema import Recipe


@dataclass(frozen=True)
class ResumePoint:
    """What a start goes on from, the same on every rank.

    Attributes:
        checkpoint: an interim one; None where the stage starts anew.
        joined_states: the folder of the optimizer's states, joined, where another number of processes left them in
            pieces; else None.
        totals: what the run had done at the checkpoint, see Totals; empty where the stage starts anew.
        facts: what new checkpoints note of the run, see resume_facts.
    """

    checkpoint: Path | None = None
    joined_states: Path | None = None
    totals: dict = field(default_factory=dict)
    facts: dict = field(default_factory=dict)


def resume_point(
    checkpoint: Path | None, recipe: Recipe, processes: int, samples: RecordStore, costs: np.ndarray
) -> ResumePoint:
    """Readies what the stage needs to go on from `checkpoint`, and prints so; one process calls it.

    Args:
        checkpoint: see last_checkpoint.
        recipe: of this start.
        processes: of this start.
        samples: of one epoch.
        costs: of each, which decide the order of training.

    Raises:
        LlavaError: when the data is not what the checkpoint was trained on, or its states cannot be joined.
    """
    digest = content_digest(samples, costs)
    facts = resume_facts(recipe, processes, digest)
    if checkpoint is None:
        return ResumePoint(facts=facts)
    check_data_unchanged(checkpoint, digest)
    mark, joined = read_mark(checkpoint), None
    if mark["processes"] != processes and recipe.run.deepspeed is not None:
        joined = checkpoints_folder(recipe.run.output_dir) / "joined"
        shutil.rmtree(joined, ignore_errors=True)
        join_states(checkpoint, mark["step"], joined)
    print(f"\ngoes on after step {mark['step']}, from {checkpoint}", flush=True)
    return ResumePoint(checkpoint, joined, mark["totals"], facts)
