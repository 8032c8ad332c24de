"""What a run's manifest tells beyond the plan: data, the rows that were drawn, the machines."""

import hashlib
import json
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

from llava.data.mixture import Mixture, choose_rows
from llava.errors import LlavaError
from llava.train.folders.stage_folder import MANIFEST
from llava.train.ranks.fingerprint import combined_hash
from llava.train.ranks.preflight import common_fields, hardware_table, unbroken_runs
from llava.train.recipe.schema import Recipe

SAMPLED = "sampled.json"


def run_facts(recipe: Recipe, mixture: Mixture, reports: list[dict]) -> dict:
    """Of run.json: hashes of code, data and start, the order of training, the machines.

    reports: what preflight returned on rank 0. sampled_ids: the SHA-256 of the ids of all samples, one a line, in the
    order of the mixture; SAMPLED has the rows. order_seed: with the epoch it alone decides the order of training.
    """
    return {
        "code": combined_hash(common_fields(reports, "code")),
        "data": common_fields(reports, "data"),
        "start": common_fields(reports, "start"),
        "sampled_ids": ids_hash(mixture.samples.ids()),
        "order_seed": recipe.run.seed,
        "hardware": hardware_table(reports),
    }


def ids_hash(ids: Iterable[str]) -> str:
    digest, separator = hashlib.sha256(), ""
    for name in ids:
        digest.update(f"{separator}{name}".encode())
        separator = "\n"
    return digest.hexdigest()


def sampled_rows(mixture: Mixture, seed: int) -> list[dict]:
    """Which rows of each data file are trained on, compactly: {json_path, sampling_strategy, rows, ids}.

    rows: [first, last] of each unbroken run, counted from 1 as in messages. ids: as `sampled_ids`, of this file's.
    """
    ids, found = mixture.samples.ids(), []
    for entry in mixture.table:
        path = Path(entry.json_path)
        rows = choose_rows(entry.rows, entry.sampling_strategy, f"{seed}/{path.name}", str(path))
        found.append(
            {
                "json_path": entry.json_path,
                "sampling_strategy": entry.sampling_strategy,
                "rows": unbroken_runs([row + 1 for row in rows]),
                "ids": ids_hash(islice(ids, entry.taken)),
            }
        )
    return found


def write_start(folder: Path, manifest: dict, rows: list[dict]) -> None:
    """The manifest, without results yet, and the rows: so that a run that is cut off can be told too.

    Raises LlavaError when they cannot be written.
    """
    lines = ",\n".join(json.dumps(entry) for entry in rows)
    try:
        (folder / SAMPLED).write_text(f"[\n{lines}\n]\n")
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
    except OSError as error:
        raise LlavaError(f"{folder}: the manifest could not be written: {error}") from error
