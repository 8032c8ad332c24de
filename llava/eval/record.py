"""What is stored of a finished task beside the harness's own results: where it comes from, its score, and its rows."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from llava.errors import LlavaError
from llava.eval.benchmarks import benchmark
from llava.eval.headline import benchmark_headline, document_score, task_headline
from llava.eval.job import Job
from llava.eval.server.settings import TRANSFORMERS, ServerSettings
from llava.eval.task import task_names
from llava.eval.tiling import stored_tiling
from llava.train.folders.stage_folder import trained_arm

if TYPE_CHECKING:
    from lmms_eval.api.task import ConfigurableTask

    from llava.eval.judge.reviews import Reviewer
    from llava.eval.lmms_model import LlavaOVManager

PACKAGES = {"llava": "llava-ov-manager", "lmms-eval": "lmms-eval", "transformers": "transformers", "torch": "torch"}


def run_block(
    job: Job,
    started: datetime,
    source: dict,
    results: dict,
    rows: list[dict],
    task: "ConfigurableTask",
    model: "LlavaOVManager",
    reviewer: "Reviewer | None",
) -> dict:
    """The block "run" of results.json, see llava/eval/store.py.

    Args:
        job: that was done.
        started: when.
        source: of the documents, see source_of.
        results: the harness's.
        rows: see sample_rows.
        task: of the harness.
        model: that answered.
        reviewer: that asked the judge; None where nobody was asked.

    Raises:
        LlavaError: when the task has no score.
    """
    return {
        **asdict(job),
        **_facts_of_run(job, started, source, results),
        "engine": ServerSettings(**job.server).engine if job.server else TRANSFORMERS,
        **_facts_of_model(job, model),
        **_facts_of_score(job, task, results["results"][job.task], rows, reviewer),
    }


def _facts_of_run(job: Job, started: datetime, source: dict, results: dict) -> dict:
    return {
        "dataset": f"{source['dataset_path']} ({source['dataset_name'] or 'default'})",
        "task_version": results["versions"][job.task],
        **work_facts(started, PACKAGES),
    }


def work_facts(started: datetime, packages: Iterable[str]) -> dict:
    """Versions of these of PACKAGES, when the work was started, and how many seconds it has taken by now."""
    return {
        "versions": {name: version(PACKAGES[name]) for name in packages},
        "date": started.isoformat(timespec="seconds"),
        "seconds": round((datetime.now(UTC) - started).total_seconds(), 1),
    }


def _facts_of_model(job: Job, model: "LlavaOVManager") -> dict:
    folder = Path(job.model)
    facts = {"weights": model.weights, "arm": trained_arm(folder), "tiling": stored_tiling(folder)}
    return {**model.facts(), **facts}


def _facts_of_score(
    job: Job, task: "ConfigurableTask", values: dict, rows: list[dict], reviewer: "Reviewer | None"
) -> dict:
    """The headline among them: `score` of a benchmark, `headline` of a task of lmms-eval's that has no row."""
    from llava.eval.judge.rubrics import prompts_version

    row, score, headline = benchmark(job.task), None, None
    if row and not (reviewer and reviewer.failed):
        score = benchmark_headline(row, values, rows)
    if job.file:
        preferred = [group["metric"] for group in job.groups if group["metric"]]
        headline = task_headline(job.task, task.higher_is_better(), values, task._filters[0].name, rows, preferred)
    notes = [row.note] if row and row.note else []
    if headline and headline.note:
        notes.append(headline.note)
    return {
        "metrics": list(task.aggregation()),
        "score": score,
        "headline": headline and asdict(headline),
        "judge": reviewer and reviewer.facts(prompts_version(job.task)),
        "notes": notes,
        "documents": len(rows),
    }


def sample_rows(task: str, samples: list[dict], metrics: list[str]) -> list[dict]:
    """The rows that are stored, in the order of doc_id: each document's fields, answer and scores in `metrics`."""
    row = benchmark(task)
    score = row.document_score if row else float if task in task_names() else document_score

    def scores(sample: dict) -> dict:
        values = {metric: score(sample[metric]) for metric in metrics if sample.get(metric) is not None}
        return {metric: value for metric, value in values.items() if value is not None}

    rows = [
        {
            "doc_id": sample["doc_id"],
            "doc": sample["doc"],
            "target": sample["target"],
            "answer": sample["filtered_resps"][0],
            "scores": scores(sample),
        }
        for sample in samples
    ]
    return sorted(rows, key=lambda row: row["doc_id"])


def of_first_filter(task: str, samples: list[dict], expected: int, filters: int) -> list[dict]:
    """One sample for each document: lmms-eval gives one for each filter, the first's first.

    Raises LlavaError unless every document has one.
    """
    counts = Counter(sample["doc_id"] for sample in samples)
    if sorted(counts) != list(range(expected)) or set(counts.values()) - {filters}:
        complete = sum(1 for count in counts.values() if count == filters)
        raise LlavaError(f"task {task}: {complete} of {expected} documents have one answer")
    firsts: dict[int, dict] = {}
    for sample in samples:
        firsts.setdefault(sample["doc_id"], sample)
    return list(firsts.values())
