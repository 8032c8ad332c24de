"""run.json, composed here alone: what ran, on what data and machines, with which versions, and what came of it."""

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from llava.checkpoint.folder import MANIFEST
from llava.data.mixture import Mixture
from llava.data.record_store import Part
from llava.errors import LlavaError
from llava.train.estimate.plan import Plan
from llava.train.family import Data, StageRecipe, family_of
from llava.train.loop.components import Component, component_rows
from llava.train.ranks.fingerprint import combined_hash, git_state, versions
from llava.train.ranks.preflight import common_fields, hardware_table, unbroken_runs

SAMPLED = "sampled.json"


def start_manifest(
    recipe: StageRecipe, plan: Plan, components: list[Component], mixture: Data, reports: Sequence[dict]
) -> dict:
    """What is known before the first step.

    code, data, start: hashes. sampled_ids: the SHA-256 of the ids of all samples, one a line, in the order of the
    mixture; SAMPLED has the rows. order_seed: with the epoch it alone decides the order of training. hardware: the
    machines.

    Args:
        recipe: resolved.
        plan: see Plan.
        components: what trains.
        mixture: the samples.
        reports: what preflight returned on rank 0.
    """
    return {
        "recipe": recipe.to_dict(),
        "plan": asdict(plan),
        "components": component_rows(components),
        "versions": versions(),
        "git": git_state(),
        "code": combined_hash(common_fields(reports, "code")),
        "data": common_fields(reports, "data"),
        "start": common_fields(reports, "start"),
        "sampled_ids": family_of(recipe).ids_hash(mixture),
        "order_seed": recipe.run.seed,
        "hardware": hardware_table(reports),
    }


def end_manifest(
    start: dict,
    totals: dict,
    *,
    steps: int,
    tokens_seen: int,
    mixture: Data,
    optimizer_groups: list[dict],
    attention: str,
) -> dict:
    """`start`, see start_manifest, and what came of it.

    train_loss: the mean loss of the run's steps. started, ended: of the run, in UTC. seconds: what its starts took
    together, each until the checkpoint that the next one went on from.

    Args:
        start: of the last start.
        totals: see Totals.joined.
        steps: of the run.
        tokens_seen: without padding.
        mixture: whose table tells how many samples each entry gave.
        optimizer_groups: see check_groups.
        attention: the implementation.
    """
    started, ended = (
        datetime.fromtimestamp(moment, UTC).isoformat(timespec="seconds") for moment in (totals["started"], time.time())
    )
    return {
        **start,
        "optimizer_groups": optimizer_groups,
        "mixture": [asdict(entry) for entry in mixture.table],
        "attention": attention,
        "steps": steps,
        "tokens_seen": tokens_seen,
        "train_loss": totals["loss"] / steps,
        "skipped": totals["skipped"],
        "shortened": totals["shortened"],
        "started": started,
        "ended": ended,
        "seconds": round(totals["seconds"], 1),
    }


def ids_hash(parts: Sequence[Part]) -> str:
    """The SHA-256 of the samples' ids, one a line."""
    digest, separator = hashlib.sha256(), b""
    for part in parts:
        for block in part.index.ids(part.rows):
            digest.update(separator + block)
            separator = b"\n"
    return digest.hexdigest()


def sampled_rows(mixture: Mixture) -> list[dict]:
    """Which rows of each data file are trained on, compactly: {json_path, sampling_strategy, rows, ids}.

    rows: [first, last] of each unbroken run, counted from 1 as in messages. ids: as `sampled_ids`, of this file's.
    """
    return [
        {
            "json_path": entry.json_path,
            "sampling_strategy": entry.sampling_strategy,
            "rows": unbroken_runs(np.asarray(part.rows) + 1),
            "ids": ids_hash([part]),
        }
        for entry, part in zip(mixture.table, mixture.samples.parts, strict=True)
    ]


def write_start(folder: Path, manifest: dict, rows: list[dict]) -> None:
    """Writes the manifest of the start, and the rows: so that a run that is cut off can be told too.

    Raises:
        LlavaError: when they cannot be written.
    """
    lines = ",\n".join(json.dumps(entry) for entry in rows)
    try:
        (folder / SAMPLED).write_text(f"[\n{lines}\n]\n")
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
    except OSError as error:
        raise LlavaError(f"{folder}: the manifest could not be written: {error}") from error
