"""results.json: everything that a table is computed from, of each row, seed and question."""

import json
import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llava.bench.data_sets import parts_of
from llava.bench.jobs import Bench, Training
from llava.bench.rows import REFERENCE
from llava.bench.statistics import RowScore, score_rows, student_difference
from llava.errors import LlavaError
from llava.eval.report.intervals import Difference
from llava.files import whole_file
from llava.text_files import read_json

FORMAT = "llava bench fusion 2"
RUN_KEYS = ("right", "answers", "held_out_loss", "rate", "seconds", "training_seconds", "order", "git", "versions")
MEASURED_KEYS = (
    "fusion", "described", "parameters", "flops", "batch_size", "device", "step_seconds", "peak_memory_gib",
    "seconds_per_answer",
)  # fmt: skip


def collect(bench: Bench, left_out: dict[str, str]) -> dict[str, Any]:
    """What the jobs that are done came to.

    {format, settings, seeds, machine, rows: {row: {arm, section, about}}, left_out: {"data row": why},
    data: {data: {questions: [{id, document, kind}], rows: {row: {fusion, described, parameters, flops, batch_size,
    device, step_seconds, peak_memory_gib, seconds_per_answer, rate, grid: [[rate, loss]], seeds: {seed: {right: [0 or
    1 of each question], answers, held_out_loss, seconds, order, git}}}}, remark: of the parts}}, sweep: {title, axis,
    values: [row], remarks}, of a sweep alone}

    Raises LlavaError where two rows did not train on the same samples in the same steps.
    """
    data = {name: _of_data(bench, name) for name in bench.data}
    for name, of_data in data.items():
        _check_order(name, of_data["rows"])
    return {
        "format": FORMAT,
        "settings": asdict(bench.settings),
        "seeds": bench.seeds,
        "machine": {"processor": _processor(), "python": platform.python_version()},
        "rows": {row.name: {"arm": row.arm, "section": row.section, "about": row.about} for row in bench.rows},
        "left_out": left_out,
        "data": data,
        **({"sweep": bench.sweep.to_dict()} if bench.sweep is not None else {}),
    }


def _processor() -> str:
    from llava.train.ranks.hardware import cpu_name  # imports torch

    return cpu_name()


def _of_data(bench: Bench, name: str) -> dict[str, Any]:
    questions: list[dict[str, str]] = []
    rows = {}
    for row in bench.rows:
        measured = bench.result(Training("measure", name, row))
        if measured is None:
            continue
        seeds = {}
        for job in bench.runs(name, row):
            result = bench.result(job)
            if result is not None:
                questions = [dict(zip(("id", "document", "kind"), question)) for question in result["questions"]]
                seeds[str(job.seed)] = {key: result[key] for key in RUN_KEYS}
        losses = [[rate, loss] for rate, loss in bench.losses(name, row).items()]
        rows[row.name] = {key: measured[key] for key in MEASURED_KEYS}
        rows[row.name] |= {"rate": bench.chosen_rate(name, row), "grid": losses, "seeds": seeds}
    return {"questions": questions, "rows": rows, "remark": parts_of(name, bench.settings.parts).remark}


def _check_order(name: str, rows: dict[str, Any]) -> None:
    first: dict[str, tuple[str, str]] = {}
    for row, of_row in rows.items():
        for seed, run in of_row["seeds"].items():
            other, order = first.setdefault(seed, (row, run["order"]))
            if order != run["order"]:
                raise LlavaError(
                    f"{name}, seed {seed}: {other} and {row} were not trained on the same samples in the same steps "
                    f"({order[:12]} and {run['order'][:12]})"
                )


def write_results(file: Path, results: dict[str, Any]) -> None:
    """The file, whole."""
    with whole_file(file) as stream:
        json.dump(results, stream, indent=1)
        stream.write("\n")


def read_results(file: Path) -> dict[str, Any]:
    """What write_results wrote. Raises LlavaError for a file that it did not write."""
    results = read_json(file)
    if results.get("format") != FORMAT:
        raise LlavaError(f"{file}: expected the format {FORMAT!r}, found {results.get('format')!r}")
    return results


@dataclass(frozen=True)
class HeldOutLoss:
    """Of held-out conversations at the end of training.

    mean: over the seeds. difference: to the reference, over the seeds by Student's t; None of the reference, and with
    one seed.
    """

    mean: float
    difference: Difference | None


@dataclass(frozen=True)
class Line:
    """A line of the table: what was measured of a row on a data set, its score and its loss once all seeds are done."""

    data: str
    row: str
    measured: dict[str, Any]
    score: RowScore | None
    loss: HeldOutLoss | None = None


def table_lines(results: dict[str, Any]) -> list[Line]:
    """Of every row that was measured, in the order of the data sets and of the rows.

    A score is given to rows with as many seeds as the bench has, where the reference has them too.
    """
    lines = []
    for name, of_data in results["data"].items():
        rows = of_data["rows"]
        documents, kinds, right = answers_of(results, name)
        scores, losses = {}, {}
        if REFERENCE in right:
            scores = score_rows(name, documents, kinds, right, REFERENCE)
            losses = _losses({row: [run["held_out_loss"] for run in rows[row]["seeds"].values()] for row in right})
        lines += [Line(name, row, of_row, scores.get(row), losses.get(row)) for row, of_row in rows.items()]
    return lines


def answers_of(results: dict[str, Any], name: str) -> tuple[list[str], list[str], dict[str, np.ndarray]]:
    """The questions of a data set and how its rows answered them.

    Returns the document and the kind of each question, and {row: (S, questions)}, 1 where the answer was right, of the
    rows that have all S seeds of the bench.
    """
    of_data, wanted = results["data"][name], [str(seed) for seed in range(1, results["seeds"] + 1)]
    documents, kinds = ([question[key] for question in of_data["questions"]] for key in ("document", "kind"))
    seeds = {row: of_row["seeds"] for row, of_row in of_data["rows"].items() if list(of_row["seeds"]) == wanted}
    right = {row: np.array([run["right"] for run in runs.values()]) for row, runs in seeds.items()}
    return documents, kinds, right


def _losses(by_seed: dict[str, list[float]]) -> dict[str, HeldOutLoss]:
    """by_seed: {row: its loss with each seed}."""
    arrays = {row: np.array(losses) for row, losses in by_seed.items()}
    base = arrays.pop(REFERENCE)
    others = {row: HeldOutLoss(float(of.mean()), student_difference(of - base)) for row, of in arrays.items()}
    return {REFERENCE: HeldOutLoss(float(base.mean()), None), **others}
