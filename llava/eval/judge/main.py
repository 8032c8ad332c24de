"""`llava eval judge RUN`: scores what `llava eval` has answered, on a machine that may have no GPU and no weights."""

import json
from dataclasses import asdict, replace
from pathlib import Path

from llava.arguments import ArgumentParser
from llava.errors import LlavaError
from llava.eval.benchmarks import is_judged
from llava.eval.harness import answers_folder
from llava.eval.job import Job
from llava.eval.judge.settings import add_judge_arguments, judge_settings_from
from llava.eval.store import RESULTS
from llava.eval.task import data_folder

DESCRIPTION = """\
Scores the stored answers of a run: of the tasks that a judge reads, and of those that have no results yet. Nothing is
generated; the documents are needed, the weights are not. Reviews are stored as they come (RUN/TASK.reviews.jsonl) and
are not asked for again by the same judge. The exit status is 0 when every task has complete results, else 1.
"""


def judge_jobs(argv: list[str]) -> list[Job]:
    """The jobs that the arguments name. Raises LlavaError when the run has no answers to them."""
    args = _parser().parse_args(argv)
    stored = _stored_jobs(args.run)
    tasks = list(dict.fromkeys(args.tasks.split(","))) if args.tasks else list(stored)
    for task in tasks:
        if task not in stored:
            raise LlavaError(f"{args.run}: has no answers to task {task!r} (found: {', '.join(stored)})")
    if not args.tasks:
        tasks = [task for task in tasks if is_judged(task) or not (args.run / task / RESULTS).is_file()]
    judge = judge_settings_from(args) if any(map(is_judged, tasks)) else None
    return [
        replace(
            stored[task],
            out=str(args.run),
            data=data_folder(args.data, task, alone=len(tasks) == 1) if args.data else stored[task].data,
            mode="judge",
            judge=asdict(judge) if judge and is_judged(task) else None,
        )
        for task in tasks
    ]


def _parser() -> ArgumentParser:
    parser = ArgumentParser(prog="llava eval judge", description=DESCRIPTION)
    parser.add_argument("run", type=Path, metavar="RUN", help="folder that `llava eval --out RUN` has answered into")
    parser.add_argument("--tasks", metavar="T,T,...", help="only these")
    parser.add_argument("--data", type=Path, metavar="ROOT", help="where the documents are here, as in `llava eval`")
    add_judge_arguments(parser)
    return parser


def _stored_jobs(run: Path) -> dict[str, Job]:
    """What was asked of the model, by task."""
    if not run.is_dir():
        raise LlavaError(f"{run}: no such run folder")
    jobs = {}
    for file in sorted(run.glob("*.answers/job.json")):
        try:
            job = Job(**json.loads(file.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise LlavaError(f"{file}: damaged ({error}); ask the model again") from error
        jobs[job.task] = job
    if not jobs:
        raise LlavaError(f"{run}: holds no stored answers (no {answers_folder(run, '*').name}/job.json)")
    return jobs
