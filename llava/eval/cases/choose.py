"""Which documents are cases: those that runs answer differently, or those that `--where` wants."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from llava.errors import LlavaError
from llava.eval.benchmarks import benchmark
from llava.eval.cases.where import Wanted, is_right, read_where
from llava.eval.headline import headline_metric
from llava.eval.store import TaskRun, load_run, read_rows, shown_tasks

OWN_METRIC = "exact_match"  # of our own tasks, which have several


@dataclass(frozen=True)
class Answer:
    """text: as the task's filter left it. share: what it is worth, from 0 to 1, None without a score. score: in words.

    right: None without a score.
    """

    run: str
    text: str
    share: float | None
    score: str
    right: bool | None


@dataclass(frozen=True)
class Choice:
    """A document that is shown. row: as the first run stored it."""

    doc_id: int
    row: dict
    answers: list[Answer]


@dataclass(frozen=True)
class TaskCases:
    """name: as the paper has it. runs: that have the task. count: of documents that fit. choices: the first of them."""

    task: str
    name: str
    metric: str
    runs: dict[str, TaskRun]
    count: int
    choices: list[Choice]


@dataclass(frozen=True)
class _Scored:
    """One run's rows of a task by doc_id, and the name of the metric that they are read by."""

    run: TaskRun
    metric: str
    rows: dict[int, dict]


def name_runs(folders: Sequence[Path]) -> dict[str, Path]:
    """The folders by name; of folders of one name as much of the path as tells them apart. LlavaError for one twice."""
    paths = [folder.resolve() for folder in folders]
    if twice := next((path for path in paths if paths.count(path) > 1), None):
        raise LlavaError(f"{twice}: named twice")
    names = {}
    for path in paths:
        parts = 1
        while sum(other.parts[-parts:] == path.parts[-parts:] for other in paths) > 1:
            parts += 1
        names["/".join(path.parts[-parts:])] = path
    return names


def choose_cases(
    folders: Mapping[str, Path], where: str | None, tasks: Sequence[str] | None, limit: int, least: float
) -> tuple[list[TaskCases], list[str]]:
    """The cases of every task, and remarks about what could not be compared.

    Args:
        folders: of the runs, by name.
        where: see llava/eval/cases/where.py; None wants documents that some runs answer right and some wrong.
        tasks: only these.
        limit: cases of each task at most.
        least: from which share an answer is right.

    Raises:
        LlavaError: when a run is damaged, a task unknown, or no document fits.
    """
    runs = {name: {run.task: run for run in load_run(folder)} for name, folder in folders.items()}
    wanted, needed = _differ(least), list(runs)
    if where is not None:
        wanted, needed = read_where(where, list(runs), least)
    elif len(runs) < 2:
        raise LlavaError("one run differs from none: name two runs, or say with --where what is wanted")
    cases, remarks, compared = [], [], 0
    for task in shown_tasks(runs, tasks):
        lacking = [name for name in needed if task not in runs[name]]
        if lacking and where is not None:
            remarks.append(f"{task} is left out: {', '.join(lacking)} did not answer it")
            continue
        scored, faults = _scored_runs(task, runs, folders)
        remarks += faults
        if len(scored) < (2 if where is None else 1) or not set(needed if where else ()) <= scored.keys():
            continue
        alike, others = _alike(scored)
        if others:
            remarks.append(f"{task}: {others} documents are not the same in all runs, they are left out")
        compared += len(alike)
        of_task = _of_task(task, scored, alike, wanted, limit, least)
        if of_task.choices:
            cases.append(of_task)
    if not cases:
        fits = "fits --where" if where is not None else "is answered right by one run and wrong by another"
        reasons = f" ({'; '.join(remarks)})" if remarks else ""
        raise LlavaError(f"none of {compared} documents {fits}; nothing is written{reasons}")
    return cases, remarks


def _differ(least: float) -> Wanted:
    def differ(shares: Mapping[str, float | None]) -> bool:
        return len({is_right(share, least) for share in shares.values() if share is not None}) > 1

    return differ


def _scored_runs(
    task: str, runs: Mapping[str, Mapping[str, TaskRun]], folders: Mapping[str, Path]
) -> tuple[dict[str, _Scored], list[str]]:
    """The runs whose answers to a task are right or wrong, and why others are left out."""
    scored, faults = {}, []
    for name, of_run in runs.items():
        if task in of_run:
            run, metric = of_run[task], _metric(of_run[task])
            if metric is None:
                faults.append(f"{task} of {name} is left out: no score of single documents from 0 to 1")
            else:
                rows = {row["doc_id"]: row for row in read_rows(folders[name] / task)}
                scored[name] = _Scored(run, metric, rows)
    return scored, faults


def _metric(run: TaskRun) -> str | None:
    """By which an answer is right or wrong; None where single documents have no such score."""
    row = benchmark(run.task)
    if row is not None:
        metric = headline_metric(row)
    elif run.headline is not None:
        metric = run.headline.metric if run.headline.bounded else None
    else:
        metric = OWN_METRIC if OWN_METRIC in run.scores else next(iter(run.scores), None)
    return metric if metric in run.scores else None


def _alike(scored: Mapping[str, _Scored]) -> tuple[list[int], int]:
    """The doc_id of the documents that all runs were asked, and how many are other documents or not in all of them."""
    every = sorted({number for part in scored.values() for number in part.rows})
    alike = [number for number in every if _is_alike([part.rows.get(number) for part in scored.values()])]
    return alike, len(every) - len(alike)


def _is_alike(rows: Sequence[dict | None]) -> bool:
    """By their fields, as far as runs stored them, and what is expected."""
    present = [row for row in rows if row is not None]
    if len(present) < len(rows):
        return False
    fields = {json.dumps(row["doc"], sort_keys=True) for row in present if row.get("doc")}
    targets = {json.dumps(row.get("target"), sort_keys=True) for row in present}
    return len(fields) <= 1 and len(targets) == 1


def _of_task(
    task: str, scored: Mapping[str, _Scored], doc_ids: Sequence[int], wanted: Wanted, limit: int, least: float
) -> TaskCases:
    choices, count = [], 0
    for number in doc_ids:
        answers = [_answer(name, part, part.rows[number], least) for name, part in scored.items()]
        if wanted({answer.run: answer.share for answer in answers}):
            count += 1
            if len(choices) < limit:
                row = next((part.rows[number] for part in scored.values() if part.rows[number].get("doc")), None)
                choices.append(Choice(number, row or next(iter(scored.values())).rows[number], answers))
    row, first = benchmark(task), next(iter(scored.values()))
    runs = {name: part.run for name, part in scored.items()}
    return TaskCases(task, row.name if row else task, first.metric, runs, count, choices)


def _answer(name: str, part: _Scored, row: dict, least: float) -> Answer:
    value = row["scores"].get(part.metric)
    text = row["answer"] if isinstance(row["answer"], str) else json.dumps(row["answer"], ensure_ascii=False)
    if value is None:
        return Answer(name, text, None, "no score", None)
    if isinstance(value, list):
        share, score = (value[0] / value[1] if value[1] else 0.0), f"{value[0]:g} of {value[1]:g}"
    else:
        share, score = float(value), f"{value:.3g}"
    if part.run.headline is not None and not part.run.headline.higher_is_better:
        share = 1 - share
    return Answer(name, text, share, score, is_right(share, least))
