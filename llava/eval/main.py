"""`llava eval`: runs tasks through lmms-eval, one process per task, and prints the table of results."""

import json
import os
import signal
import sys
from argparse import Namespace, RawDescriptionHelpFormatter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from llava.arguments import ArgumentParser, unknown
from llava.checkpoint.folder import check_folder, weights_id
from llava.engine.checks import SPREAD, check_dtype
from llava.errors import LlavaError
from llava.eval.benchmarks import PROTOCOLS, is_judged
from llava.eval.cases import main as cases
from llava.eval.catalogue import TaskChoice, choose_tasks
from llava.eval.harness import OFFLINE
from llava.eval.job import Job
from llava.eval.judge.main import judge_jobs
from llava.eval.judge.settings import NO_JUDGE, JudgeSettings, add_judge_arguments, judge_settings_from
from llava.eval.report import main as report
from llava.eval.server.own import check_own, own_server
from llava.eval.server.settings import (
    BATCH_SIZE,
    NOT_TOLD,
    TRANSFORMERS,
    VLLM,
    ServerSettings,
    add_engine_arguments,
    base_url,
    check_engine,
)
from llava.eval.store import RESULTS, discard_task_run
from llava.eval.suites import PAPER, SUITES
from llava.eval.task import data_folder
from llava.eval.two_tower.jobs import MODULE, PROTOCOL, is_two_tower, two_tower_jobs
from llava.eval.workers import StopError, run_worker, sole_writer, stoppable

DESCRIPTION = """\
Evaluates a checkpoint with lmms-eval, one process per task. A task that fails is reported at the end, with the reason;
the others go on. The exit status is 0 when every task has complete results, 1 when one failed, 2 after wrong arguments,
130 after Ctrl-C, 143 after SIGTERM: what was answered is stored, and the same command goes on from there.
"""
RERANK = "of retrieval by two towers: how many of the nearest by ITC its ITM ranks anew (default: as the set says)"
EPILOG = """\
`llava eval judge RUN` scores stored answers later or elsewhere.
`llava eval report RUN ...` prints finished runs side by side, `llava eval cases RUN ...` shows where they differ.
docs/evaluate.md says how local data lie below --data ROOT (in short: ROOT/TASK/ holds parquet files and a README.md
that names them, as on the hub), and how tasks outside the paper are scored. What stands behind -- is vLLM's, with
--engine vllm: llava eval ... --engine vllm -- --max-model-len 8192
"""


def main(argv: list[str]) -> int:
    """Returns 0 when every task has complete results, 1 when one failed, 128 + N after a signal N.

    Raises LlavaError for wrong arguments.
    """
    try:
        with stoppable():
            return _main(argv)
    except StopError as stop:
        kept = (
            ""
            if argv[:1] in (["report"], ["cases"])
            else "; what was answered and judged is stored, the same command goes on"
        )
        print(f"\n{signal.Signals(stop.number).name}: stopped{kept}", file=sys.stderr)
        return 128 + stop.number


def _main(argv: list[str]) -> int:
    if argv[:1] == ["report"]:
        return report.main(argv[1:])
    if argv[:1] == ["cases"]:
        return cases.main(argv[1:])
    if argv[:1] == ["judge"]:
        return _run(judge_jobs(argv[1:]), processes=1)
    if argv and not argv[0].startswith("-"):
        raise LlavaError(unknown("command", argv[0], ["cases", "judge", "report"]))
    args = _parse(argv)
    if is_two_tower(args.model):
        if args.engine != TRANSFORMERS:
            raise LlavaError(
                f"--engine {args.engine} is for models that generate text; {args.model} is a two-tower model"
            )
        return _run(two_tower_jobs(args), args.processes)
    plan = _plan(args)
    with _answering(args) as server:
        return _run(_jobs(args, plan, server), args.processes)


def _run(jobs: list[Job], processes: int) -> int:
    if unjudged := [job.task for job in jobs if _lacks_judge(job)]:
        print(f"error: {', '.join(unjudged)}: {NO_JUDGE}", file=sys.stderr)
    if not jobs:
        print("every task has results already; nothing was judged")
        return 0
    with sole_writer(Path(jobs[0].out), [job.task for job in jobs]) as locks:
        failures = {job.task: reason for job in jobs if (reason := _failure(job, processes, locks))}
    if len(failures) < len(jobs):
        _print_outcome(jobs)
    for task, reason in failures.items():
        print(f"error: task {task} failed: {reason.removeprefix(f'task {task}: ')}", file=sys.stderr)
    if failures and len(jobs) > 1:
        print(f"error: {len(failures)} of {len(jobs)} tasks failed: {', '.join(failures)}", file=sys.stderr)
    return 1 if failures else 0


def _lacks_judge(job: Job) -> bool:
    return is_judged(job.task) and job.mode != "predict" and job.judge is None


def _print_outcome(jobs: list[Job]) -> None:
    job = jobs[0]
    if job.mode == "predict":
        print(f"{job.out}: the answers are stored")
    elif any((Path(one.out) / one.task / RESULTS).is_file() for one in jobs):
        from llava.eval.report.comparison import build_report  # imports numpy
        from llava.eval.report.tables import render_text

        print(render_text(build_report([Path(job.out)])), end="")


def _parse(argv: list[str]) -> Namespace:
    """The arguments; `name`: the model as it was written, which a server knows it by; `options`: vLLM's own."""
    end = argv.index("--") if "--" in argv else len(argv)
    args = _parser().parse_args(argv[:end])
    args.options = argv[end + 1 :]
    for name in ("limit", "batch_size", "processes", "requests"):
        value = vars(args)[name]
        if value is not None and value < 1:
            raise LlavaError(f"--{name} must be at least 1, found {value}")
    if args.rerank is not None and args.rerank < 0:
        raise LlavaError(f"--rerank must be at least 0, found {args.rerank}")
    check_engine(args)
    args.name, args.model = args.model, Path(args.model)
    return args


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="llava eval",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--model", required=True, metavar="DIR", help="checkpoint folder; with an address for --engine, a name there"
    )
    parser.add_argument(
        "--suite",
        choices=SUITES,
        help=f"a list of tasks with a name (default: {PAPER}, the paper's {len(SUITES[PAPER])} benchmarks)",
    )
    parser.add_argument(
        "--tasks",
        metavar="T,T,...",
        help="in place of a suite: tasks, groups and tags of lmms-eval, digit_pages, text_pages, and paths of tasks' "
        "YAML files or of folders with them",
    )
    parser.add_argument("--data", type=Path, metavar="ROOT", help="local data, see below (default: from the hub)")
    parser.add_argument("--out", required=True, type=Path, metavar="RUN", help="run folder; its name is the column")
    parser.add_argument("--limit", type=int, metavar="N", help="evaluate only the first N documents of each task")
    parser.add_argument(
        "--protocol",
        choices=PROTOCOLS,
        default=PROTOCOLS[0],
        help="paper (default): prompts and answer lengths as in the paper's run; harness: lmms-eval's own settings",
    )
    parser.add_argument("--predict_only", action="store_true", help="store the answers, score nothing, ask no judge")
    parser.add_argument("--batch_size", type=int, metavar="N", help=f"dialogues per batch (default {BATCH_SIZE})")
    parser.add_argument("--rerank", type=int, metavar="N", help=RERANK)
    parser.add_argument("--image_noise", action="store_true", help="replace every image by noise: the blind model")
    devices = f"cpu, cuda, cuda:1, ..., or {SPREAD}: layer by layer over all GPUs (default: a GPU if there is one)"
    parser.add_argument("--device", metavar="NAME", help=devices)
    parser.add_argument("--dtype", default="auto", help="float32, bfloat16, float16 (default: bfloat16 on a GPU)")
    parser.add_argument("--processes", type=int, metavar="N", help="split the documents over N processes (default 1)")
    add_engine_arguments(parser)
    add_judge_arguments(parser)
    return parser


class Plan(NamedTuple):
    """What a run is to do, checked. data: of each task, its folder, None for the hub."""

    choices: list[TaskChoice]
    data: dict[str, str | None]
    judge: JudgeSettings | None


def _plan(args: Namespace) -> Plan:
    """After checking all that can be known before a model is loaded or a server asked."""
    if args.suite is not None and args.tasks is not None:
        raise LlavaError("--suite names tasks, and so does --tasks; give one of them")
    if args.rerank is not None:
        raise LlavaError(f"--rerank is for retrieval by a two-tower model; {args.name} generates text")
    choices = choose_tasks(SUITES[args.suite or PAPER] if args.tasks is None else args.tasks.split(","))
    tasks = [choice.name for choice in choices]
    if find_spec("lmms_eval") is None:
        raise LlavaError("lmms-eval is not installed; docs/evaluate.md says how")
    if args.engine in (TRANSFORMERS, VLLM):
        check_folder(args.model)
    if args.engine == VLLM:
        check_own(args.model)
    check_dtype(args.dtype)
    judge = judge_settings_from(args) if any(map(is_judged, tasks)) and not args.predict_only else None
    return Plan(choices, {task: data_folder(args.data, task, alone=len(tasks) == 1) for task in tasks}, judge)


@contextmanager
def _answering(args: Namespace) -> Iterator[ServerSettings | None]:
    """A context in which a server answers, which is there and has the model; None where the model in a process does."""
    if args.engine == TRANSFORMERS:
        yield None
    elif args.engine == VLLM:
        with own_server(args) as server:
            yield server
    else:
        from llava.eval.server.client import server_at  # imports httpx

        yield server_at(base_url(args.engine), args.name, args.requests)


def _jobs(args: Namespace, plan: Plan, server: ServerSettings | None) -> list[Job]:
    ours = args.engine in (TRANSFORMERS, VLLM)
    weights = weights_id(args.model) if ours else NOT_TOLD  # which reads the whole checkpoint
    return [_job(args, choice, plan.data[choice.name], plan.judge, weights, server) for choice in plan.choices]


def _job(
    args: Namespace,
    choice: TaskChoice,
    data: str | None,
    judge: JudgeSettings | None,
    weights: str,
    server: ServerSettings | None,
) -> Job:
    return Job(
        model=server.model if server else str(args.model),
        task=choice.name,
        file=None if choice.file is None else str(choice.file.resolve()),
        groups=list(map(asdict, choice.groups)),
        data=data,
        out=str(args.out),
        limit=args.limit,
        batch_size=args.batch_size,
        image_noise=args.image_noise,
        device=args.device,
        dtype=args.dtype,
        protocol=args.protocol,
        mode="predict" if args.predict_only else "run",
        judge=asdict(judge) if judge and is_judged(choice.name) else None,
        weights=weights,
        server=server and asdict(server),
    )


def _failure(job: Job, processes: int, locks: Sequence[int] = ()) -> str | None:
    """Runs one task; returns why it failed, None when it did not. locks: see llava/eval/workers.py."""
    if _lacks_judge(job):
        return "no judge is named"
    if processes > 1 and is_judged(job.task) and job.mode == "run":  # all processes answer, one asks the judge
        predicted = _failure(replace(job, mode="predict"), processes, locks)
        return predicted or _failure(replace(job, mode="judge"), 1, locks)
    discard_task_run(Path(job.out), job.task)
    if job.protocol != PROTOCOL and job.data is not None and not Path(job.data).is_dir():
        return f"{job.data}: no such dataset folder"
    print(f"== {job.task} ==", file=sys.stderr)
    launcher = ["-m", "llava.train.launch", "--standalone", f"--nproc_per_node={processes}"] if processes > 1 else []
    with TemporaryDirectory(prefix="llava_eval_", ignore_cleanup_errors=True) as folder:
        reason = Path(folder) / "reason"
        command = [
            sys.executable,
            *launcher,
            "-m",
            MODULE if job.protocol == PROTOCOL else "llava.eval.harness",
            json.dumps(asdict(job)),
            str(reason),
        ]
        local = {**OFFLINE, "HF_DATASETS_CACHE": folder} if job.data is not None else {}
        status = run_worker(command, {**os.environ, "TMPDIR": folder, **local}, locks)
        if status == 0:
            return None
        if reason.is_file():
            return reason.read_text(encoding="utf-8")
    number = -status if status < 0 else status - 128  # launch.py gives a killed rank's signal as shells do
    return f"killed by {signal.Signals(number).name}" if number > 0 else f"ended with status {status}"
