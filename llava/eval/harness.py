"""One task of one model through lmms-eval, in a process of its own: `python -m llava.eval.harness JOB`.

JOB is the JSON of a `Job`; `llava eval` starts one such process per task. lmms-eval itself always exits 0 and may
leave some documents out, so that the results are checked here before they are saved.
"""

import hashlib
import json
import sys
from argparse import Namespace
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

import yaml

from llava.errors import LlavaError
from llava.eval.lmms_model import MODEL_ID
from llava.eval.store import save_task_run

TASKS = Path(__file__).parent / "tasks"
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
PACKAGES = {"llava": "llava-ov-manager", "lmms-eval": "lmms-eval", "transformers": "transformers", "torch": "torch"}


@dataclass(frozen=True)
class Job:
    """model: checkpoint folder. task: a name in TASKS. data: the dataset's folder. out: the run folder.

    limit: evaluate only the first documents. image_noise: the blind model (see llava/eval/adapter.py).
    """

    model: str
    task: str
    data: str
    out: str
    limit: int | None = None
    batch_size: int = 1
    image_noise: bool = False
    device: str | None = None
    dtype: str = "auto"


def task_names() -> list[str]:
    """The tasks that ship with the package."""
    return sorted(file.stem for file in TASKS.glob("*.yaml"))


def run(job: Job) -> Path | None:
    """Runs the task and saves its results; returns their folder (None on all ranks but the first).

    Raises LlavaError when the plugin is not installed or when a document has no answer.
    """
    from lmms_eval import evaluator
    from lmms_eval.tasks import TaskManager
    from loguru import logger

    logger.remove()  # lmms-eval logs to stdout
    logger.add(sys.stderr, level="WARNING", format="<level>{level}</level> {name}: {message}")
    started = datetime.now(UTC)
    model = _load_model(job)
    settings = {"device": str(model.device), "dtype": str(model.engine.model.dtype).removeprefix("torch.")}
    with TemporaryDirectory() as folder:
        write_task(job.task, job.data, Path(folder))
        results = evaluator.simple_evaluate(
            model=model,
            tasks=[job.task],
            task_manager=TaskManager("WARNING", include_path=folder, include_defaults=False, model_name=MODEL_ID),
            batch_size=job.batch_size,
            limit=job.limit,
            log_samples=True,
            bootstrap_iters=0,
            datetime_str=started.isoformat(timespec="seconds"),
            cli_args=Namespace(process_with_media=False, output_path=job.out),
        )
    if results is None:
        return None
    metrics = [entry["metric"] for entry in results["configs"][job.task]["metric_list"]]
    rows = _sample_rows(results.pop("samples")[job.task], metrics)
    _check_complete(job.task, rows, expected=results["n-samples"][job.task]["effective"])
    results["run"] = {
        **asdict(job),
        **settings,
        "metrics": metrics,
        "documents": len(rows),
        "task_version": results["versions"][job.task],
        "weights": weights_id(Path(job.model)),
        "versions": {name: version(package) for name, package in PACKAGES.items()},
        "date": started.isoformat(timespec="seconds"),
        "seconds": round((datetime.now(UTC) - started).total_seconds(), 1),
    }
    return save_task_run(Path(job.out), job.task, results, rows)


def write_task(task: str, data: str, folder: Path) -> None:
    """Writes the task as the harness wants it: the shipped YAML, included by its path, plus where the data lies."""
    config = {"include": str(TASKS / f"{task}.yaml"), "task": task, "dataset_path": str(Path(data).resolve())}
    (folder / f"{task}.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")


def weights_id(model: Path) -> str:
    """The first 12 hex digits of the SHA-256 of the folder's weights."""
    digest = hashlib.sha256()
    for file in sorted(model.glob("*.safetensors")):
        with file.open("rb") as stream:
            while block := stream.read(1 << 24):
                digest.update(block)
    return digest.hexdigest()[:12]


def _load_model(job: Job):
    from lmms_eval.models import get_model, list_available_models

    if MODEL_ID not in list_available_models():
        raise LlavaError(f"lmms-eval does not find the model {MODEL_ID!r}: install this package (pip install -e .)")
    return get_model(MODEL_ID)(
        job.model, batch_size=job.batch_size, device=job.device, dtype=job.dtype, image_noise=job.image_noise
    )


def _sample_rows(samples: list[dict], metrics: list[str]) -> list[dict]:
    rows = [
        {
            "doc_id": sample["doc_id"],
            "doc": sample["doc"],
            "target": sample["target"],
            "answer": sample["filtered_resps"][0],
            "scores": {metric: sample[metric] for metric in metrics if metric in sample},
        }
        for sample in samples
    ]
    return sorted(rows, key=lambda row: row["doc_id"])


def _check_complete(task: str, rows: list[dict], expected: int) -> None:
    answered = [row["doc_id"] for row in rows]
    if answered != list(range(expected)):
        raise LlavaError(f"task {task}: {len(set(answered))} of {expected} documents have one answer")


def main(argv: list[str]) -> int:
    try:
        run(Job(**json.loads(argv[0])))
    except LlavaError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
