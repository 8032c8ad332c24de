"""Before anything is loaded: what every rank of a run sees, and whether all were given the same.

Ranks report to the store through which torchrun's processes find each other, so that neither NCCL nor gloo need work
yet. Rank 0 compares. When ranks differ, each host says so once, in one line, and every process ends with status 2.
"""

import contextlib
import json
import os
import platform
from collections.abc import Sequence
from datetime import timedelta
from itertools import groupby
from typing import NoReturn

import numpy as np
from torch import distributed

from llava.errors import LlavaError
from llava.sizes import UNITS, in_bytes
from llava.text_table import text_table
from llava.train.family import StageRecipe
from llava.train.loop.precision import check_precision
from llava.train.ranks.fingerprint import (
    code_hashes,
    combined_hash,
    data_hashes,
    recipe_values,
    start_hashes,
    versions,
)
from llava.train.ranks.hardware import choose_network, hardware
from llava.train.ranks.shared_disk import shared_disk_fault
from llava.train.ranks.waiting import part, run_store
from llava.train.ranks.watch import end_watch, start_watch

SHOWN_HASH = 12  # characters
HASH_LENGTH = 64
LONGEST = 1800  # seconds until a rank that does not report is given up, where run.startup_timeout is not less
PARTING = timedelta(seconds=20)  # for the others to read what rank 0 found


def preflight(recipe: StageRecipe) -> list[dict]:
    """Compares the ranks of this run; rank 0 prints what they see. Every process calls it, before it loads anything.

    Returns:
        The reports of all ranks on rank 0, and this process's own on the others; see `report`.

    Raises:
        LlavaError: when ranks differ, one cannot report, or one does not within `run.startup_timeout`; when the run
            would keep checkpoints and its hosts do not share the disk.
        SystemExit: on the processes that leave the message to another of their host.
    """
    this_report = report(recipe)
    if "RANK" not in os.environ:
        reports, fault = [this_report], this_report["fault"]
    else:
        choose_network()
        patience = min(recipe.run.startup_timeout, LONGEST)
        reports, fault = _exchange(this_report, patience)
        if not fault:
            fault = shared_disk_fault(recipe.run, patience)
            if fault:
                part()
    if fault:
        _end(fault)
    if this_report["rank"] == 0:
        print(describe(reports), end="\n\n", flush=True)
    return reports


def stop_all(error: LlavaError) -> NoReturn:
    """Ends this process for an `error` that it met before the preflight, and tells the ranks that wait there."""
    this_report = {"rank": int(os.environ["RANK"]), "host": platform.node(), "fault": str(error), "compared": {}}
    _end(_exchange(this_report, LONGEST)[1])


def _end(fault: str) -> NoReturn:
    """One process of each host tells; all know."""
    end_watch()
    if int(os.environ.get("LOCAL_RANK", 0)) > 0:
        raise SystemExit(2)
    raise LlavaError(fault)


def report(recipe: StageRecipe) -> dict:
    """What this process sees: {rank, fault, host, device, ..., compared: {field: value}}.

    fault: why it cannot run here, or None.
    """
    facts = {"rank": int(os.environ.get("RANK", 0)), "host": platform.node(), "fault": None, "compared": {}}
    try:
        facts |= hardware(recipe.run.output_dir)
        check_precision(recipe, facts["device"])
        facts["compared"] = compared(recipe, on_gpu=not facts["device"].startswith("CPU"))
    except (LlavaError, OSError) as error:
        facts["fault"] = str(error)
    return facts


def compared(recipe: StageRecipe, on_gpu: bool) -> dict[str, str]:
    """{field: value} of all that must be the same on every rank."""
    groups = {
        "recipe": recipe_values(recipe),
        "version": {name: number or "not installed" for name, number in versions().items()},
        "code": code_hashes(),
        "data": data_hashes(recipe),
        "start": start_hashes(recipe),
    }
    return {
        "world size": os.environ.get("WORLD_SIZE", "1"),
        "kind of device": "GPU" if on_gpu else "CPU",
        **{f"{group} {name}": value for group, values in groups.items() for name, value in values.items()},
    }


def _exchange(this_report: dict, seconds: int) -> tuple[list[dict], str]:
    """Every rank's report on rank 0, and what is wrong with them on all; an empty text when nothing is."""
    timeout = timedelta(seconds=seconds)
    try:
        rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        restarts = os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)
        store = distributed.PrefixStore(f"preflight/{restarts}", run_store(timeout))
        store.set_timeout(timeout)
        start_watch()
        store.set(f"report/{rank}", json.dumps(this_report))
        reports, verdict = [this_report], None
        if rank == 0:
            reports, verdict = _collect(store, world_size, seconds)
            store.set("verdict", verdict)
        verdict = verdict if rank == 0 else store.get("verdict").decode()
    except distributed.DistError as error:
        place = f"rank {this_report['rank']} on {this_report['host']}"
        reason = str(error).partition("\n")[0]
        return [this_report], f"{place} found no word of the other ranks in {seconds} s: {reason}"
    if verdict:
        _wait_for_readers(store, rank, world_size)
    return reports, verdict


def _collect(store: distributed.Store, world_size: int, seconds: int) -> tuple[list[dict], str]:
    """All reports, and the first fault or difference among them."""
    reports = []
    for rank in range(world_size):
        try:
            reports.append(json.loads(store.get(f"report/{rank}")))
        except distributed.DistStoreError:
            return reports, f"rank {rank} of {world_size} did not report within {seconds} s"
    return reports, first_fault(reports) or difference(reports) or ""


def first_fault(reports: list[dict]) -> str | None:
    """Why the first rank that cannot run cannot, and which it is unless all say the same; None if all can."""
    faulty = [report for report in reports if report["fault"]]
    if not faulty:
        return None
    if len({report["fault"] for report in reports}) == 1:
        return faulty[0]["fault"]
    return f"rank {faulty[0]['rank']} on {faulty[0]['host']}: {faulty[0]['fault']}"


def _wait_for_readers(store: distributed.Store, rank: int, world_size: int) -> None:
    """Keeps the store's host alive until all ranks know why they end; one that is gone already knew."""
    with contextlib.suppress(distributed.DistError):
        store.set(f"read/{rank}", "")
        store.wait([f"read/{other}" for other in range(world_size)], PARTING)


def difference(reports: list[dict]) -> str | None:
    """One line that names the first field in which ranks differ, with each value's ranks and hosts; None if none do.

    A field that only some ranks have, such as a file, counts as `absent` on the others.
    """
    fields = list(dict.fromkeys(field for report in reports for field in report["compared"]))
    values = {field: [report["compared"].get(field, "absent") for report in reports] for field in fields}
    differing = [field for field in fields if len(set(values[field])) > 1]
    if not differing:
        return None
    first = differing[0]
    places = []
    for value in dict.fromkeys(values[first]):
        holders = [report for report, reported in zip(reports, values[first]) if reported == value]
        shown = value[:SHOWN_HASH] if len(value) == HASH_LENGTH else value
        hosts = ", ".join(dict.fromkeys(report["host"] for report in holders))
        places.append(f"{shown} on {_ranks(holders)} ({hosts})")
    more = f", and in {len(differing) - 1} more, such as {differing[1]}" if len(differing) > 1 else ""
    return f"ranks differ in {first}: {', '.join(places)}{more}"


def _ranks(reports: list[dict]) -> str:
    """`rank 3`, `ranks 0-7`, `ranks 0-1, 4`."""
    ranks = [report["rank"] for report in reports]
    text = ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in unbroken_runs(ranks))
    return f"ranks {text}" if len(ranks) > 1 else f"rank {text}"


def hardware_table(reports: list[dict]) -> list[dict]:
    """One row for neighbouring ranks that see the same: {ranks, host, device, ...}, for the table and run.json.

    Free disk changes while ranks look at it: the least counts.
    """
    groups = [list(group) for _, group in groupby(reports, _seen)]
    return [
        {
            "ranks": _ranks(group).partition(" ")[2],
            **_seen(group[0]),
            "free_disk_gb": min(report["free_disk_gb"] for report in group),
        }
        for group in groups
    ]


def _seen(report: dict) -> dict:
    return {key: value for key, value in report.items() if key not in ("rank", "fault", "compared", "free_disk_gb")}


def describe(reports: list[dict]) -> str:
    """What all have in common, then a table of the ranks."""
    hashes = {group: combined_hash(common_fields(reports, group)) for group in ("code", "recipe", "data", "start")}
    versions = common_fields(reports, "version")
    installed = [f"{name} {value}" for name, value in versions.items() if value != "not installed"]
    rows = [("ranks", "host", "device", "memory", "network", "free disk")]
    for row in hardware_table(reports):
        memory, disk = (in_bytes(row[key] * UNITS["GB"]) for key in ("memory_gb", "free_disk_gb"))
        rows.append((row["ranks"], row["host"], row["device"], memory, row["network"] or "-", disk))
    return "\n".join(
        [
            f"preflight   {len(reports)} processes: "
            + ", ".join(f"{group} {value[:SHOWN_HASH]}" for group, value in hashes.items()),
            f"versions    {', '.join(installed)}",
            "",
            text_table(rows, right=[False]),
        ]
    )


def common_fields(reports: list[dict], group: str) -> dict[str, str]:
    """{name: value} of the fields of one group (recipe, version, code, data, start), once ranks agree on them."""
    fields = reports[0]["compared"].items()
    return {key.removeprefix(f"{group} "): value for key, value in fields if key.startswith(f"{group} ")}


def unbroken_runs(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """First and last of each: [1, 2, 3, 7] -> [(1, 3), (7, 7)]."""
    runs = np.split(np.asarray(numbers, dtype=np.int64), np.flatnonzero(np.diff(numbers) != 1) + 1)
    return [(int(run[0]), int(run[-1])) for run in runs if len(run)]
