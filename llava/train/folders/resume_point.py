"""What a start of a stage goes on from: decided once, by the first rank, before the Trainer is built."""

import shutil
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from llava.data.content import content_digest
from llava.data.record_store import RecordStore
from llava.errors import LlavaError
from llava.train.folders.interim import COSTS, checkpoints_folder, read_mark
from llava.train.folders.reshape import join_states
from llava.train.folders.same_run import ANEW, check_data_unchanged, is_cut_anew, resume_facts
from llava.train.recipe.schema import Recipe
from llava.train.recipe.way_on import skip_option


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


def resume_point(
    checkpoint: Path | None,
    recipe: Recipe,
    processes: int,
    samples: RecordStore,
    costs: np.ndarray,
    text_costs: np.ndarray,
) -> ResumePoint:
    """Readies what the stage needs to go on from `checkpoint`, and prints so; one process calls it.

    Args:
        checkpoint: see last_checkpoint.
        recipe: of this start.
        processes: of this start.
        samples: of one epoch.
        costs: of each, which decide the order of training.
        text_costs: of each, where none of its images and videos can be read.

    Raises:
        LlavaError: when the data is not what the checkpoint was trained on, or its states cannot be joined.
    """
    before = None if checkpoint is None else _costs_before(checkpoint, costs)
    digest = content_digest(samples, costs if before is None else before)
    facts = resume_facts(recipe, processes, digest)
    if checkpoint is None:
        return ResumePoint(facts=facts)
    check_data_unchanged(checkpoint, digest)
    if before is not None:
        _check_sizes(checkpoint, recipe, samples, before, costs, text_costs)
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


def _check_sizes(
    checkpoint: Path,
    recipe: Recipe,
    samples: RecordStore,
    before: np.ndarray,
    costs: np.ndarray,
    text_costs: np.ndarray,
) -> None:
    """Raises LlavaError unless a file that cannot be read, now or then, is why costs of the same records differ.

    Samples that are left out may show what they like.
    """
    skipped = frozenset(recipe.data.skip_ids or ())
    resized = np.flatnonzero((before != costs) & (before != text_costs) & (costs != text_costs)).tolist()
    changed = [samples[number] for number in resized if samples[number].id not in skipped]
    if changed:
        raise LlavaError(
            f"{checkpoint}: the data has changed since: {len(changed)} samples show images or videos of other sizes, "
            f"first {changed[0]}. Restore them, leave them out ({skip_option([changed[0].id], recipe)}), or {ANEW}"
        )
