"""One task of one model through lmms-eval, in a process of its own: `python -m llava.eval.harness JOB`.

JOB is the JSON of a `Job`; `llava eval` starts one such process per task. lmms-eval itself always exits 0 and may
leave some documents out, so that the results are checked here before they are saved.
"""

import json
import os
import sys
import traceback
from argparse import Namespace
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from llava.errors import LlavaError
from llava.eval.benchmarks import benchmark, is_judged
from llava.eval.job import Job
from llava.eval.judge.settings import NO_JUDGE, JudgeSettings, judge_settings
from llava.eval.plugin import MODEL_ID
from llava.eval.record import of_first_filter, run_block, sample_rows
from llava.eval.server.settings import ServerSettings
from llava.eval.store import ANSWERS, save_task_run
from llava.eval.task import build_task, task_config
from llava.files import whole_file
from llava.train.loop.stop import die_with_launcher
from llava.train.rank import end_with

if TYPE_CHECKING:
    from datasets import Dataset
    from lmms_eval.api.task import ConfigurableTask

    from llava.eval.judge.reviews import Reviewer
    from llava.eval.lmms_model import LlavaOVManager

OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}


def run(job: Job) -> Path | None:
    """Runs the task and saves its results.

    Returns:
        Their folder; None on all ranks but the first, and in mode "predict", which saves no results.

    Raises:
        LlavaError: when the plugin is not installed, the documents cannot be had, a document has no answer or the
            benchmark gets no score.
    """
    from llava.eval.judge.reviews import with_reviews

    log_to_stderr()
    started = datetime.now(UTC)
    reviewer = _reviewer(job)
    config = task_config(job.task, job.protocol, job.file)
    source, documents = _documents(job, config)  # first: lmms-eval's start and the model's take longer
    model_class = _model_class(job)
    task = build_task(job.task, config, source, documents, simple=model_class.is_simple)
    model = _load_model(job, model_class)
    if job.mode != "judge" and model.rank == 0:
        _note_job(job)
    evaluate = partial(_evaluate, job, model, task, started, reviewer.settings.parallel if reviewer else 1)
    results = with_reviews(reviewer, evaluate) if reviewer else evaluate()
    if results is None:
        return None
    samples = results.pop("samples")[job.task]
    samples = of_first_filter(job.task, samples, results["n-samples"][job.task]["effective"], len(task._filters))
    if job.mode == "predict":
        return None
    rows = sample_rows(job.task, samples, list(task.aggregation()))
    results["run"] = run_block(job, started, source, results, rows, task, model, reviewer)
    folder = save_task_run(Path(job.out), job.task, results, rows)
    if reviewer and reviewer.failed:
        raise LlavaError(f"task {job.task}: {reviewer.summary()}; `llava eval judge {job.out}` asks for these again")
    return folder


def log_to_stderr() -> None:
    """lmms-eval logs to stdout."""
    from loguru import logger

    logger.remove()
    logger.add(sys.stderr, level="WARNING", format="<level>{level}</level> {name}: {message}")


def _documents(job: Job, config: dict) -> tuple[dict, "Dataset"]:
    """Where the documents lie and the documents, checked."""
    from llava.eval.documents import load_documents, source_of, spec_of
    from llava.eval.fields import check_documents

    spec = spec_of(job.task, config if job.file else None)
    source = source_of(spec, job.data)
    documents = load_documents(spec, source)
    check_documents(job.task, source["dataset_path"], documents, job.limit, scores=job.mode != "predict")
    return source, documents


def _reviewer(job: Job) -> "Reviewer | None":
    """Who asks the judge; None where there is nothing to judge. Raises LlavaError when no judge is named."""
    from llava.eval.judge.reviews import Reviewer

    if not is_judged(job.task) or job.mode == "predict":
        return None
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise LlavaError(f"task {job.task}: several processes can only answer it (mode predict); one asks the judge")
    settings = JudgeSettings(**job.judge) if job.judge else judge_settings(None, None)
    if settings is None:
        raise LlavaError(f"task {job.task}: {NO_JUDGE}")
    return Reviewer(settings, Path(job.out) / f"{job.task}.reviews.jsonl")


def _evaluate(
    job: Job, model: "LlavaOVManager", task: "ConfigurableTask", started: datetime, at_once: int
) -> dict | None:
    """The harness's results, None on all ranks but the first. at_once: documents that are scored at a time."""
    from lmms_eval import evaluator
    from lmms_eval.tasks import TaskManager
    from tenacity import RetryError

    with TemporaryDirectory() as files:  # what some aggregations write: the samples say it all
        try:
            return evaluator.simple_evaluate(
                model=model,
                tasks=[task],
                task_manager=TaskManager("WARNING", include_defaults=False, model_name=MODEL_ID),
                batch_size=job.batch_size,
                limit=job.limit,
                log_samples=True,
                bootstrap_iters=0,
                predict_only=job.mode == "predict",
                process_docs_parallel=at_once,
                datetime_str=started.isoformat(timespec="seconds"),
                cli_args=Namespace(process_with_media=False, output_path=files),
            )
        except RetryError as error:
            cause = error.last_attempt.exception()
            raise LlavaError(f"task {job.task}: an answer cannot be scored ({_in_words(cause)})") from cause


def _in_words(error: BaseException) -> str:
    return str(error) if isinstance(error, LlavaError) else f"{type(error).__name__}: {error}"


def answers_folder(out: str | Path, task: str) -> Path:
    """Where the task's answers are stored as they come; see llava/eval/answers.py."""
    return Path(out) / f"{task}{ANSWERS}"


def _note_job(job: Job) -> None:
    """Beside the answers, what was asked: for `llava eval judge`."""
    folder = answers_folder(job.out, job.task)
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({**asdict(job), "judge": None}, indent=2)
    with whole_file(folder / "job.json") as file:
        file.write(text + "\n")


def _model_class(job: Job) -> type:
    """The plugin's class of the simple type where the paper's protocol asks a benchmark, else of the chat type."""
    from lmms_eval.models import get_model, list_available_models

    if MODEL_ID not in list_available_models():
        raise LlavaError(f"lmms-eval does not find the model {MODEL_ID!r}: install this package (pip install -e .)")
    return get_model(MODEL_ID, force_simple=job.protocol == "paper" and benchmark(job.task) is not None)


def _load_model(job: Job, model_class: type) -> "LlavaOVManager":
    return model_class(
        job.model,
        batch_size=job.batch_size,
        device=job.device,
        dtype=job.dtype,
        answers=str(answers_folder(job.out, job.task)),
        weights=job.weights,
        stored_only=job.mode == "judge",
        image_noise=job.image_noise,
        server=ServerSettings(**job.server) if job.server else None,
    )


def main(argv: list[str], work: Callable[[Job], object] = run) -> int:
    """Does the job `argv[0]`; a failure's reason goes to stderr and, for who waits, to the file `argv[1]`."""
    die_with_launcher()
    job = Job(**json.loads(argv[0]))
    try:
        work(job)
    except LlavaError as error:
        reason = str(error)
    except Exception as error:
        traceback.print_exc()  # a bug of ours or of the harness: whoever mends it needs to know where
        reason = f"task {job.task}: {_in_words(error)}"
    else:
        return 0
    if _first_to_fail(argv[1:], reason):
        print(f"error: {reason}", file=sys.stderr)
    return 2


def _first_to_fail(files: list[str], reason: str) -> bool:
    """Writes the reason, unless another rank was quicker."""
    try:
        for file in files:
            with open(file, "x", encoding="utf-8") as stream:
                stream.write(reason)
    except FileExistsError:
        return False
    return True


if __name__ == "__main__":
    end_with(lambda: main(sys.argv[1:]))
