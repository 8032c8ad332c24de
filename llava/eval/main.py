"""`llava eval`: runs tasks through lmms-eval, one process per task, and prints the table of results."""

import argparse
import json
import os
import subprocess
import sys
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

from llava.errors import LlavaError
from llava.eval import report
from llava.eval.harness import OFFLINE, Job
from llava.eval.store import discard_task_run
from llava.eval.task import task_names


def main(argv: list[str]) -> int:
    """Returns 0 when every task has complete results, 1 when one failed; raises LlavaError for wrong arguments."""
    if argv[:1] == ["report"]:
        return report.main(argv[1:])
    args = _parser().parse_args(argv)
    jobs = _jobs(args)
    failed = [job.task for job in jobs if not _succeeds(job, args.processes)]
    for task in failed:
        print(f"error: task {task} failed, see the messages above", file=sys.stderr)
    if len(failed) < len(jobs):
        print(report.render_text(report.build_report([args.out])), end="")
    return 1 if failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="llava eval",
        description="Evaluates a checkpoint with lmms-eval.",
        epilog="`llava eval report RUN ...` prints finished runs side by side.",
    )
    parser.add_argument("--model", required=True, type=Path, metavar="DIR", help="checkpoint folder")
    parser.add_argument("--tasks", required=True, help=f"comma-separated, of: {', '.join(task_names())}")
    parser.add_argument("--data", required=True, type=Path, metavar="DIR", help="the dataset's folder")
    parser.add_argument("--out", required=True, type=Path, metavar="RUN", help="run folder; its name is the column")
    parser.add_argument("--limit", type=int, metavar="N", help="evaluate only the first N documents of each task")
    parser.add_argument("--batch_size", type=int, default=8, metavar="N", help="dialogues per batch (default 8)")
    parser.add_argument("--image_noise", action="store_true", help="replace every image by noise: the blind model")
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1, ... (default: a GPU if there is one)")
    parser.add_argument("--dtype", default="auto", help="float32, bfloat16, float16 (default: bfloat16 on a GPU)")
    parser.add_argument("--processes", type=int, default=1, metavar="N", help="split the documents over N processes")
    return parser


def _jobs(args: argparse.Namespace) -> list[Job]:
    """The jobs, after checking all that can be known before a model is loaded."""
    tasks = args.tasks.split(",")
    for task in tasks:
        if task not in task_names():
            raise LlavaError(f"unknown task {task!r}; choose of {', '.join(task_names())}")
    for name in ("limit", "batch_size", "processes"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise LlavaError(f"--{name} must be at least 1, found {value}")
    if find_spec("lmms_eval") is None:
        raise LlavaError("lmms-eval is not installed; the README says how (section Evaluate)")
    if not args.model.is_dir():
        raise LlavaError(f"{args.model}: no such model folder")
    if not (args.data / "README.md").is_file():
        raise LlavaError(f"{args.data}: not a dataset folder (no README.md that names its files)")
    return [
        Job(
            model=str(args.model),
            task=task,
            data=str(args.data),
            out=str(args.out),
            limit=args.limit,
            batch_size=args.batch_size,
            image_noise=args.image_noise,
            device=args.device,
            dtype=args.dtype,
        )
        for task in tasks
    ]


def _succeeds(job: Job, processes: int) -> bool:
    discard_task_run(Path(job.out), job.task)
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] if processes > 1 else []
    command = [sys.executable, *launcher, "-m", "llava.eval.harness", json.dumps(asdict(job))]
    with TemporaryDirectory() as cache:  # the datasets library would take an older cache for files changed in place
        environment = {**os.environ, **OFFLINE, "HF_DATASETS_CACHE": cache}
        return subprocess.run(command, env=environment, check=False).returncode == 0
