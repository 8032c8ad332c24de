"""What a start of a stage goes on from: decided once, by the first rank, before the Trainer is built."""

import shutil
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from llava.train.family import StageData, StageRecipe
from llava.train.folders.interim import COSTS, checkpoints_folder, read_mark
from llava.train.folders.reshape import join_states
from llava.train.folders.same_run import check_data_unchanged, is_cut_anew, resume_facts


@dataclass(frozen=True)
class ResumePoint:
    """What a start goes on from, the same on every rank.

    Attributes:
        checkpoint: an interim one; None where the stage starts anew.
        joined_states: the folder of the optimizer's states, joined, where they were left in other pieces than this
            start has; else None.
        totals: what the run had done at the checkpoint, see Totals; empty where the stage starts anew.
        facts: what new checkpoints note of the run, see resume_facts.
        costs: of each sample, by which the run is ordered, where this start sees others: a file was lost since, or was
            lost then; else None.
    """

    checkpoint: Path | None = None
    joined_states: Path | None = None
    totals: dict = field(default_factory=dict)
    facts: dict = field(default_factory=dict)
    costs: np.ndarray | None = None


def resume_point(checkpoint: Path | None, recipe: StageRecipe, processes: int, data: StageData) -> ResumePoint:
    """Readies what the stage needs to go on from `checkpoint`, and prints so; one process calls it.

    Args:
        checkpoint: see last_checkpoint.
        recipe: of this start.
        processes: of this start.
        data: of this start, whose costs decide the order of training.

    Raises:
        LlavaError: when the data is not what the checkpoint was trained on, or its states cannot be joined.
    """
    before = None if checkpoint is None else _costs_before(checkpoint, data.costs)
    digest = data.digest(data.costs if before is None else before)
    facts = resume_facts(recipe, processes, digest)
    if checkpoint is None:
        return ResumePoint(facts=facts)
    check_data_unchanged(checkpoint, digest)
    if before is not None:
        data.check_costs(checkpoint, before)
    mark, joined = read_mark(checkpoint), None
    if is_cut_anew(mark, recipe, processes):
        joined = checkpoints_folder(recipe.run.output_dir) / "joined"
        shutil.rmtree(joined, ignore_errors=True)
        join_states(checkpoint, joined)
    print(f"\ngoes on after step {mark['step']}, from {checkpoint}", flush=True)
    return ResumePoint(checkpoint, joined, mark["totals"], facts, before)


def _costs_before(checkpoint: Path, costs: np.ndarray) -> np.ndarray | None:
    """The costs that order the unfinished run; None where they are the same now, or not noted, as by older versions."""
    file = checkpoint / COSTS
    before = np.load(file) if file.is_file() else costs
    return None if len(before) != len(costs) or np.array_equal(before, costs) else before
