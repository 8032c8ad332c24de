"""Runs of `llava eval` with several seeds joined: which questions each answered right, by arm and seed.

ARM/seed1, ARM/seed2, ..: the run folders of an arm, which is called by its folder's name.
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from llava.arguments import unknown
from llava.errors import LlavaError
from llava.eval.report.provenance import warnings
from llava.eval.store import TaskRun, load_run, read_rows

FORMAT, REFERENCE = "llava bench seeds 1", "baseline"
METRICS = ("exact_match", "vqa_score", "accuracy")  # which a task has, one score a question
RECALLS = tuple(f"{way}_r{most}" for way in ("ir", "tr") for most in (1, 5, 10))  # of retrieval, all of them
RECALL = "recall"  # as the table calls them together
KEPT = ("model", "weights", "image_noise", "device", "dtype", "date", "versions")  # of a run's block
Runs = dict[str, dict[int, TaskRun]]  # arm -> seed


def join_seeds(arms: Sequence[Path], task: str, reference: str | None, seeds: int | None) -> dict[str, Any]:
    """Everything that the table of several arms and seeds is computed from.

    {format, task, metric, reference, seeds: [seed], questions: [{id, document, kind}], arms: {arm: {seed: {run, model,
    weights, image_noise, device, dtype, date, versions, right: [score of each question]}}}, warnings: [line]}

    Args:
        arms: their folders, in the order of the table.
        task: digit_pages, or another whose documents have `question_id` and `kind`, or an id NUMBER-KIND; or retrieval,
            where each recall of each document is a question, whose kind is the recall.
        reference: the arm that differences are to; None is `baseline`, or the first where that is not among them.
        seeds: 1 to this number are read; None reads all that the arms have.

    Raises:
        LlavaError: a folder is damaged or has not what the others have: a seed, the task, the same questions.
    """
    folders = _seed_folders(arms, seeds)
    chosen = reference or (REFERENCE if REFERENCE in folders else next(iter(folders)))
    if chosen not in folders:
        raise LlavaError(f"--reference: {unknown('arm', chosen, list(folders))}")
    runs = {arm: {seed: _task_run(folder, task) for seed, folder in of_arm.items()} for arm, of_arm in folders.items()}
    _check_documents(folders, runs)
    _check_weights(folders, runs)
    numbers = list(folders[chosen])
    metrics = _metrics(folders[chosen][numbers[0]], runs[chosen][numbers[0]])
    joined = {
        arm: {
            str(seed): {"run": str(folders[arm][seed])}
            | {key: run.run[key] for key in KEPT}
            | {"right": [score for metric in metrics for score in run.scores[metric]]}
            for seed, run in of_arm.items()
        }
        for arm, of_arm in runs.items()
    }
    blocks = {f"{arm}/seed{seed}": {task: run.run} for arm, of_arm in runs.items() for seed, run in of_arm.items()}
    return {
        "format": FORMAT,
        "task": task,
        "metric": metrics[0] if len(metrics) == 1 else RECALL,
        "reference": chosen,
        "seeds": numbers,
        "questions": _questions(folders[chosen][numbers[0]] / task, metrics),
        "arms": joined,
        "warnings": warnings(blocks),
    }


def _seed_folders(arms: Sequence[Path], seeds: int | None) -> dict[str, dict[int, Path]]:
    """{arm: {seed: folder}}, of every arm the same seeds."""
    folders: dict[str, dict[int, Path]] = {}
    for arm in arms:
        if not arm.is_dir():
            raise LlavaError(f"{arm}: no such folder")
        name = arm.resolve().name
        if name in folders:
            raise LlavaError(f"{arm}: another arm is already called {name!r}; rename one of the folders")
        folder_of = {int(match[1]): path for path in arm.iterdir() if (match := re.fullmatch(r"seed(\d+)", path.name))}
        if not folder_of:
            raise LlavaError(f"{arm}: holds no runs of seeds (seed1, seed2, ..), as llava eval --out {arm}/seed1 does")
        folders[name] = dict(sorted(folder_of.items()))
    wanted = range(1, seeds + 1) if seeds else sorted({seed for of_arm in folders.values() for seed in of_arm})
    for arm, (name, folder_of) in zip(arms, folders.items(), strict=True):
        for seed in wanted:
            if seed not in folder_of:
                others = [other for other in folders if seed in folders[other]]
                raise LlavaError(f"{arm}: no seed{seed}{f', which {others[0]} has' if others else ''}")
        folders[name] = {seed: folder_of[seed] for seed in wanted}
    return folders


def _task_run(folder: Path, task: str) -> TaskRun:
    runs = {run.task: run for run in load_run(folder)}
    if task not in runs:
        raise LlavaError(f"{folder}: no results of {task}, only of {', '.join(runs)}")
    _metrics(folder, runs[task])
    return runs[task]


def _metrics(folder: Path, run: TaskRun) -> tuple[str, ...]:
    """What a run's questions are scored by. Raises LlavaError where not every question is."""
    if set(RECALLS) <= run.scores.keys():
        return RECALLS
    metric = next((metric for metric in METRICS if metric in run.scores), METRICS[0])
    scored, questions = len(run.scores.get(metric, [])), run.run["documents"]
    if scored != questions:
        raise LlavaError(f"{folder}: {run.task} has {metric} of {scored} of {questions} questions; all are needed")
    return (metric,)


def _pairs(folders: dict[str, dict[int, Path]], runs: Runs) -> Iterable[tuple[Path, TaskRun]]:
    return ((folders[arm][seed], run) for arm, of_arm in runs.items() for seed, run in of_arm.items())


def _check_documents(folders: dict[str, dict[int, Path]], runs: Runs) -> None:
    (first, reference), *others = _pairs(folders, runs)
    questions, metrics = reference.run["documents"], _metrics(first, reference)
    for folder, run in others:
        if run.run["documents"] != questions:
            raise LlavaError(f"{folder}: {run.run['documents']} questions, {first} has {questions}")
        if any(run.documents.get(metric) != reference.documents[metric] for metric in metrics):
            raise LlavaError(f"{folder}: other questions than {first}, though as many ({questions})")


def _check_weights(folders: dict[str, dict[int, Path]], runs: Runs) -> None:
    """Two seeds of an arm with the same weights are one model twice."""
    for arm, of_arm in runs.items():
        seen: dict[str, int] = {}
        for seed, run in of_arm.items():
            other = seen.setdefault(run.run["weights"], seed)
            if other != seed:
                raise LlavaError(
                    f"{folders[arm][seed]}: the same weights ({run.run['weights']}) as {folders[arm][other]}"
                )


def _questions(folder: Path, metrics: Sequence[str]) -> list[dict[str, str]]:
    """Of a task's results, those of each metric. What stands before the kind in a question's id is its document."""
    rows = read_rows(folder)
    return [_question(folder, row, metric) for metric in metrics for row in rows if metric in row["scores"]]


def _question(folder: Path, row: dict[str, Any], metric: str) -> dict[str, str]:
    document = row.get("doc") or {}
    if metric in RECALLS:
        return {"id": f"{row['doc_id']}-{metric}", "document": str(document["row"]), "kind": metric}
    name = str(document.get("question_id", ""))
    kind = document.get("kind") or name.partition("-")[2]
    if not name or not kind:
        raise LlavaError(f"{folder}: doc_id {row['doc_id']} has no question_id and kind, as digit_pages has")
    return {"id": name, "document": name.removesuffix(f"-{kind}"), "kind": kind}
