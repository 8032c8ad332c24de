"""`llava eval`: runs tasks through lmms-eval, one process per task, and prints the table of results."""

import json
import os
import signal
import sys
from argparse import Namespace, RawDescriptionHelpFormatter
from collections.abc import Sequence
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

from llava.arguments import ArgumentParser, unknown
from llava.checkpoint.folder import check_folder, weights_id
from llava.engine.checks import check_dtype
from llava.errors import LlavaError
from llava.eval.benchmarks import BENCHMARKS, PROTOCOLS
from llava.eval.harness import OFFLINE, Job, is_judged
from llava.eval.judge.main import judge_jobs
from llava.eval.judge.settings import NO_JUDGE, add_judge_arguments, judge_settings_from
from llava.eval.report import main as report
from llava.eval.store import discard_task_run
from llava.eval.task import data_folder, task_names
from llava.eval.workers import StopError, run_worker, sole_writer, stoppable

DESCRIPTION = """\
Evaluates a checkpoint with lmms-eval, one process per task. A task that fails is reported at the end, with the reason;
the others go on. The exit status is 0 when every task has complete results, 1 when one failed, 2 after wrong arguments,
130 after Ctrl-C, 143 after SIGTERM: what was answered is stored, and the same command goes on from there.
"""
EPILOG = """\
Local data, --data ROOT: the documents of task T lie in ROOT/T/ (for a single task also in ROOT itself), as on the hub:
parquet files and a README.md whose front matter names them, with the split that the task reads, for example

    ROOT/textvqa_val/README.md           ---
    ROOT/textvqa_val/val-00000.parquet   configs:
                                           - config_name: default
                                             data_files:
                                               - split: validation
                                                 path: val-*.parquet
                                         ---

A copy made by `datasets.DatasetDict.save_to_disk` will do as well. Images are Image features or {bytes, path} structs.
Where a hub data set has several configurations, the folder has the benchmark's own (docvqa_val: DocVQA, infovqa_val:
InfographicVQA, scienceqa_img: ScienceQA-IMG, live_bench_2407: 2024-07, live_bench_2409: 2024-09, gqa:
testdev_balanced_instructions, with the images in testdev_balanced_images or in a column `image`), or just one of any
name. Without --data, the benchmarks' data sets are taken from the hub.

`llava eval judge RUN` scores stored answers later or elsewhere.
`llava eval report RUN ...` prints finished runs side by side.
"""


def main(argv: list[str]) -> int:
    """Returns 0 when every task has complete results, 1 when one failed, 128 + N after a signal N.

    Raises LlavaError for wrong arguments.
    """
    try:
        with stoppable():
            return _main(argv)
    except StopError as stop:
        kept = "" if argv[:1] == ["report"] else "; what was answered and judged is stored, the same command goes on"
        print(f"\n{signal.Signals(stop.number).name}: stopped{kept}", file=sys.stderr)
        return 128 + stop.number


def _main(argv: list[str]) -> int:
    if argv[:1] == ["report"]:
        return report.main(argv[1:])
    if argv[:1] == ["judge"]:
        return _run(judge_jobs(argv[1:]), processes=1)
    if argv and not argv[0].startswith("-"):
        raise LlavaError(unknown("command", argv[0], ["judge", "report"]))
    args = _parser().parse_args(argv)
    return _run(_jobs(args), args.processes)


def _run(jobs: list[Job], processes: int) -> int:
    unjudged = [job.task for job in jobs if _lacks_judge(job)]
    if unjudged:
        print(f"error: {', '.join(unjudged)}: {NO_JUDGE}", file=sys.stderr)
    if not jobs:
        print("every task has results already; nothing was judged")
        return 0
    with sole_writer(Path(jobs[0].out), [job.task for job in jobs]) as locks:
        failures = {job.task: reason for job in jobs if (reason := _failure(job, processes, locks))}
    if len(failures) < len(jobs):
        _print_outcome(jobs[0])
    for task, reason in failures.items():
        print(f"error: task {task} failed: {reason.removeprefix(f'task {task}: ')}", file=sys.stderr)
    if failures and len(jobs) > 1:
        print(f"error: {len(failures)} of {len(jobs)} tasks failed: {', '.join(failures)}", file=sys.stderr)
    return 1 if failures else 0


def _lacks_judge(job: Job) -> bool:
    return is_judged(job.task) and job.mode != "predict" and job.judge is None


def _print_outcome(job: Job) -> None:
    if job.mode == "predict":
        print(f"{job.out}: the answers are stored")
    else:
        from llava.eval.report.comparison import build_report  # imports numpy
        from llava.eval.report.tables import render_text

        print(render_text(build_report([Path(job.out)])), end="")


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="llava eval",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=RawDescriptionHelpFormatter,
    )
    benchmarks = [known.task for known in BENCHMARKS]
    others = [task for task in task_names() if task not in benchmarks]
    parser.add_argument("--model", required=True, type=Path, metavar="DIR", help="checkpoint folder")
    parser.add_argument(
        "--tasks",
        default=",".join(benchmarks),
        metavar="T,T,...",
        help=f"default: the paper's 20 benchmarks ({', '.join(benchmarks)}); besides {', '.join(others)}",
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
    parser.add_argument("--batch_size", type=int, default=8, metavar="N", help="dialogues per batch (default 8)")
    parser.add_argument("--image_noise", action="store_true", help="replace every image by noise: the blind model")
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1, ... (default: a GPU if there is one)")
    parser.add_argument("--dtype", default="auto", help="float32, bfloat16, float16 (default: bfloat16 on a GPU)")
    parser.add_argument("--processes", type=int, default=1, metavar="N", help="split the documents over N processes")
    add_judge_arguments(parser)
    return parser


def _jobs(args: Namespace) -> list[Job]:
    """The jobs, after checking all that can be known before a model is loaded."""
    tasks = list(dict.fromkeys(args.tasks.split(",")))
    for task in tasks:
        if task not in task_names():
            raise LlavaError(unknown("task", task, task_names()))
    for name in ("limit", "batch_size", "processes"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise LlavaError(f"--{name} must be at least 1, found {value}")
    if find_spec("lmms_eval") is None:
        raise LlavaError("lmms-eval is not installed; docs/evaluate.md says how")
    check_folder(args.model)
    check_dtype(args.dtype)
    judge = judge_settings_from(args) if any(map(is_judged, tasks)) and not args.predict_only else None
    folders = {task: data_folder(args.data, task, alone=len(tasks) == 1) for task in tasks}
    weights = weights_id(args.model)  # last: it reads the whole checkpoint
    return [
        Job(
            model=str(args.model),
            task=task,
            data=folders[task],
            out=str(args.out),
            limit=args.limit,
            batch_size=args.batch_size,
            image_noise=args.image_noise,
            device=args.device,
            dtype=args.dtype,
            protocol=args.protocol,
            mode="predict" if args.predict_only else "run",
            judge=asdict(judge) if judge and is_judged(task) else None,
            weights=weights,
        )
        for task in tasks
    ]


def _failure(job: Job, processes: int, locks: Sequence[int] = ()) -> str | None:
    """Runs one task; returns why it failed, None when it did not. locks: see llava/eval/workers.py."""
    if _lacks_judge(job):
        return "no judge is named"
    if processes > 1 and is_judged(job.task) and job.mode == "run":  # all processes answer, one asks the judge
        predicted = _failure(replace(job, mode="predict"), processes, locks)
        return predicted or _failure(replace(job, mode="judge"), 1, locks)
    discard_task_run(Path(job.out), job.task)
    if job.data is not None and not Path(job.data).is_dir():
        return f"{job.data}: no such dataset folder"
    print(f"== {job.task} ==", file=sys.stderr)
    launcher = ["-m", "llava.train.launch", "--standalone", f"--nproc_per_node={processes}"] if processes > 1 else []
    with TemporaryDirectory(prefix="llava_eval_", ignore_cleanup_errors=True) as folder:
        said = Path(folder) / "reason"
        command = [sys.executable, *launcher, "-m", "llava.eval.harness", json.dumps(asdict(job)), str(said)]
        local = {**OFFLINE, "HF_DATASETS_CACHE": folder} if job.data is not None else {}
        status = run_worker(command, {**os.environ, "TMPDIR": folder, **local}, locks)
        if status == 0:
            return None
        if said.is_file():
            return said.read_text(encoding="utf-8")
    number = -status if status < 0 else status - 128  # launch.py gives a killed rank's signal as shells do
    return f"killed by {signal.Signals(number).name}" if number > 0 else f"ended with status {status}"
