"""What an evaluation leaves on disk, written and read in this one place.

RUN/                        one model, named by the folder; the columns of a report are such names
    digit_pages/            one folder per task, renamed into place when it is complete
        results.json        the harness's own results, plus a "run" block: model, settings, versions
        samples.jsonl       one row per document: doc_id, doc (its fields without media), target, answer, scores
"""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from llava.errors import LlavaError

RESULTS, SAMPLES = "results.json", "samples.jsonl"
AGREEMENT = 1e-6  # the harness's mean and ours may differ by rounding, not by more


@dataclass(frozen=True)
class TaskRun:
    """One model's answers to one task.

    run: the "run" block of results.json. scores: for each metric, one score in [0, 1] per document that has it, in the
    order of the documents.
    """

    task: str
    run: dict
    scores: dict[str, list[float]]


def save_task_run(out: Path, task: str, results: dict, samples: list[dict]) -> Path:
    """Writes the folder `out`/`task` whole: to a temporary folder first, then by one rename."""
    folder, unfinished = out / task, out / f".{task}.unfinished"
    discard_task_run(out, task)
    unfinished.mkdir(parents=True)
    (unfinished / RESULTS).write_text(json.dumps(results, indent=2, default=str) + "\n", encoding="utf-8")
    rows = (json.dumps(row, default=str, ensure_ascii=False) + "\n" for row in samples)
    (unfinished / SAMPLES).write_text("".join(rows), encoding="utf-8")
    os.replace(unfinished, folder)
    return folder


def discard_task_run(out: Path, task: str) -> None:
    """Removes what an earlier run left for this task, so that a failure cannot be mistaken for its results."""
    for folder in (out / task, out / f".{task}.unfinished"):
        if folder.exists():
            shutil.rmtree(folder)


def load_run(run: Path) -> list[TaskRun]:
    """All tasks of one run, sorted by name. Raises LlavaError when there is none or one is damaged."""
    if not run.is_dir():
        raise LlavaError(f"{run}: no such run folder")
    folders = sorted(path.parent for path in run.glob(f"*/{RESULTS}"))
    if not folders:
        raise LlavaError(f"{run}: holds no evaluation results (no */{RESULTS})")
    return [_load_task_run(folder) for folder in folders]


def _load_task_run(folder: Path) -> TaskRun:
    try:
        results = json.loads((folder / RESULTS).read_text(encoding="utf-8"))
        rows = [json.loads(line) for line in (folder / SAMPLES).read_text(encoding="utf-8").split("\n") if line]
        run, means = results["run"], results["results"][folder.name]
        scores: dict[str, list[float]] = {metric: [] for metric in run["metrics"]}
        for row in rows:
            for metric, score in row["scores"].items():
                scores[metric].append(float(score))
    except (OSError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise LlavaError(f"{folder}: damaged results ({type(error).__name__}: {error})") from error
    if len(rows) != run["documents"]:
        raise LlavaError(f"{folder}: {len(rows)} rows in {SAMPLES} but {run['documents']} documents in {RESULTS}")
    scores = {metric: values for metric, values in scores.items() if values}
    for metric, values in scores.items():
        _check_against_harness(folder, metric, sum(values) / len(values), means.get(f"{metric},none"))
    return TaskRun(folder.name, run, scores)


def _check_against_harness(folder: Path, metric: str, mean: float, reported: float | None) -> None:
    if reported is None or abs(mean - reported) > AGREEMENT:
        raise LlavaError(f"{folder}: {metric} is {mean} over {SAMPLES} but {reported} in {RESULTS}")
