"""What an evaluation leaves on disk, written and read in this one place.

RUN/                        one model, named by the folder; the columns of a report are such names
    digit_pages/            one folder per task, renamed into place when it is complete
        results.json        the harness's own results, plus a "run" block: model, settings, versions, score, judge
        samples.jsonl       one row per document: doc_id, doc (its fields without media), target, answer, scores
    digit_pages.answers/    the answers as they came (see llava/eval/answers.py)
"""

import hashlib
import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from llava.arguments import unknown
from llava.errors import LlavaError
from llava.eval.benchmark_row import Benchmark
from llava.eval.benchmarks import BENCHMARKS, benchmark
from llava.eval.headline import (
    AGREEMENT,
    BENCHMARK_AGREEMENT,
    Headline,
    headline_metric,
    is_number,
    mean_score,
)
from llava.eval.server.settings import TRANSFORMERS
from llava.files import whole_folder

RESULTS, SAMPLES, ANSWERS, UNFINISHED = "results.json", "samples.jsonl", ".answers", ".unfinished"
# What the first runs did not record.
LATER_KEYS = {
    "protocol": None,
    "arm": None,
    "judge": None,
    "notes": [],
    "headline": None,
    "groups": [],
    "tiling": None,
    "engine": TRANSFORMERS,
}
KEYS = ("documents", "limit", "model", "weights", "image_noise", "device", "dtype", "date", "task_version", "versions")
JUDGE_KEYS = ("name", "prompts", "failed_reviews")


@dataclass(frozen=True)
class TaskRun:
    """One model's answers to one task.

    run: the "run" block of results.json. scores: for each metric, one score per document that has it, in the order of
    doc_id: a float in [0, 1], or (points, of) where the metric is a ratio of sums. Of a benchmark only its headline
    metric is read, and none where it has no score. documents: for each metric, a hash of these documents; runs with
    equal ones scored the same. failed_reviews: how many answers the judge could not be brought to score.
    headline: of a task of lmms-eval's that has no row among the benchmarks. Only its metric is read, then, as any
    numbers, and none where its value is no mean of them.
    """

    task: str
    run: dict
    scores: dict[str, list[float | tuple[float, float]]]
    documents: dict[str, str]
    failed_reviews: int
    headline: Headline | None = None


def save_task_run(out: Path, task: str, results: dict, samples: list[dict]) -> Path:
    """Writes the folder `out`/`task` whole: to a temporary folder first, then by one rename.

    KeyError when the results' "run" block lacks what load_run reads.
    """
    _check_keys("run", results["run"], KEYS)
    folder = out / task
    discard_task_run(out, task)
    with whole_folder(folder, out / f".{task}{UNFINISHED}") as unfinished:
        (unfinished / RESULTS).write_text(json.dumps(results, indent=2, default=str) + "\n", encoding="utf-8")
        rows = (json.dumps(row, default=_described, ensure_ascii=False) + "\n" for row in samples)
        (unfinished / SAMPLES).write_text("".join(rows), encoding="utf-8")
    return folder


def _described(value: object) -> str:
    """An image in a document by mode and size: its repr has an address, another in every run."""
    from PIL import Image

    return f"{value.mode} image, {value.width}x{value.height}" if isinstance(value, Image.Image) else str(value)


def discard_task_run(out: Path, task: str) -> None:
    """Removes what an earlier run left for this task, so that a failure cannot be mistaken for its results."""
    for folder in (out / task, out / f".{task}{UNFINISHED}"):
        if folder.exists():
            shutil.rmtree(folder)


def load_run(run: Path) -> list[TaskRun]:
    """All tasks of one run, sorted by name. Raises LlavaError when there is none or one is damaged or half written."""
    if not run.is_dir():
        raise LlavaError(f"{run}: no such run folder")
    folders = sorted(path for path in run.iterdir() if _holds_results(path))
    if not folders:
        if (run / RESULTS).is_file():
            raise LlavaError(f"{run}: the results of one task; give the run's folder, {run.resolve().parent}")
        unscored = sorted(unscored_tasks(run))
        answers = f"; stored answers of {', '.join(unscored)} wait to be scored" if unscored else ""
        raise LlavaError(f"{run}: holds no evaluation results (no */{RESULTS}){answers}")
    return [_load_task_run(folder) for folder in folders]


def shown_tasks(runs: Mapping[str, Mapping[str, TaskRun]], tasks: Sequence[str] | None) -> list[str]:
    """The tasks of runs, or these of them, in the order of the benchmarks; others behind them.

    runs: run -> task -> what it left. Raises LlavaError when no run has one of `tasks`.
    """
    present = [row.task for row in BENCHMARKS if any(row.task in of_run for of_run in runs.values())]
    present = list(dict.fromkeys([*present, *(task for of_run in runs.values() for task in of_run)]))
    if wrong := [task for task in tasks or () if task not in present]:
        raise LlavaError(unknown("task", wrong[0], present))
    return [task for task in present if tasks is None or task in tasks]


def _holds_results(path: Path) -> bool:
    """Whether `path` is a task's folder, whole or not; other folders may stand beside them."""
    return path.name.endswith(UNFINISHED) or any((path / file).is_file() for file in (RESULTS, SAMPLES))


def unscored_tasks(run: Path) -> set[str]:
    """The tasks with stored answers and without results: only predicted, or interrupted."""
    tasks = {path.name.removesuffix(ANSWERS) for path in run.glob(f"*{ANSWERS}")}
    return {task for task in tasks if not (run / task / RESULTS).is_file()}


def _load_task_run(folder: Path) -> TaskRun:
    if folder.name.endswith(UNFINISHED):
        task = folder.name.removeprefix(".").removesuffix(UNFINISHED)
        raise LlavaError(f"{folder}: results of {task} that were only half written; evaluate {task} again")
    row = benchmark(folder.name)
    try:
        results = json.loads((folder / RESULTS).read_text(encoding="utf-8-sig"))
        rows = read_rows(folder)
        run = LATER_KEYS | results["run"]
        _check_keys("run", run, KEYS)
        if run["judge"] is not None:
            _check_keys("judge", run["judge"], JUDGE_KEYS)
        headline = Headline(**run["headline"]) if run["headline"] is not None and row is None else None
        metrics = [headline.metric] if headline else run["metrics"] if row is None else [headline_metric(row)]
        scored = {metric: [line for line in rows if metric in line["scores"]] for metric in metrics}
        means = results.get("results", {}).get(folder.name, {})
        documents = {metric: documents_hash(lines) for metric, lines in scored.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise LlavaError(f"{folder}: damaged results ({type(error).__name__}: {error})") from error
    if len(rows) != run["documents"]:
        raise LlavaError(f"{folder}: {len(rows)} rows in {SAMPLES} but {run['documents']} documents in {RESULTS}")
    if (different := len({line["doc_id"] for line in rows})) != len(rows):
        raise LlavaError(f"{folder}: {len(rows)} rows in {SAMPLES} but {different} different doc_id")
    failed_reviews = run["judge"]["failed_reviews"] if run["judge"] is not None else 0
    if headline is not None:
        scores = _headline_scores(folder, headline, scored)
    elif row is None:
        scores = _task_scores(folder, scored, means)
    else:
        scores = {} if failed_reviews else _benchmark_scores(folder, row, run, scored)
    return TaskRun(folder.name, run, scores, documents, failed_reviews, headline)


def read_rows(folder: Path) -> list[dict]:
    """The rows of a task's folder, one a document, in the order of doc_id; of a folder that load_run could read."""
    lines = (folder / SAMPLES).read_text(encoding="utf-8-sig").split("\n")
    return sorted((json.loads(line) for line in lines if line), key=lambda line: line["doc_id"])


def _check_keys(name: str, block: dict, keys: Sequence[str]) -> None:
    if missing := [key for key in keys if key not in block]:
        raise KeyError(f"{name}: {', '.join(missing)}")


def documents_hash(rows: list[dict]) -> str:
    """Of the documents' numbers, fields and targets."""
    digest = hashlib.sha256()
    for row in rows:
        content = json.dumps([row["doc_id"], row.get("doc"), row.get("target")], sort_keys=True)
        digest.update(content.encode() + b"\n")
    return digest.hexdigest()


def _task_scores(folder: Path, scored: dict[str, list[dict]], means: dict) -> dict[str, list]:
    """Every metric that a document has. Raises LlavaError when the harness has another mean."""
    scores = {metric: _checked_scores(folder, metric, rows) for metric, rows in scored.items() if rows}
    for metric, values in scores.items():
        _compare(folder, metric, mean_score(values), means.get(f"{metric},none"), AGREEMENT)
    return scores


def _headline_scores(folder: Path, headline: Headline, scored: dict[str, list[dict]]) -> dict[str, list]:
    """What every document scored, in which unit ever. Raises LlavaError when the two disagree."""
    if headline.factor is None:
        return {}
    metric, rows = headline.metric, scored[headline.metric]
    for line in rows:
        if not is_number(line["scores"][metric]):
            raise LlavaError(f"{folder}: doc_id {line['doc_id']} has {metric} {line['scores'][metric]!r}, no number")
    values = [float(line["scores"][metric]) for line in rows]
    mean = headline.factor * mean_score(values) if values else None
    _compare(folder, metric, mean, headline.value, AGREEMENT * max(1.0, abs(headline.value)))
    return {metric: values}


def _benchmark_scores(folder: Path, row: Benchmark, run: dict, scored: dict[str, list[dict]]) -> dict[str, list]:
    """The headline's scores, none where the run has no score. Raises LlavaError when the two disagree."""
    if "score" not in run:
        raise LlavaError(f"{folder}: written by an older version, {RESULTS} has no score; evaluate {row.task} again")
    if run["score"] is None:
        return {}
    metric = headline_metric(row)
    if not isinstance(run["score"], int | float) or not scored[metric]:
        rows = len(scored[metric])
        raise LlavaError(f"{folder}: {RESULTS} has the score {run['score']!r}, {rows} rows of {SAMPLES} have {metric}")
    values = _checked_scores(folder, metric, scored[metric])
    _compare(folder, metric, mean_score(values), run["score"] / 100, BENCHMARK_AGREEMENT)
    return {metric: values}


def _checked_scores(folder: Path, metric: str, rows: list[dict]) -> list[float | tuple[float, float]]:
    """Numbers as floats, lists as tuples. Raises LlavaError for anything but scores, and for a mixture of both."""
    scores: list[float | tuple[float, float]] = []
    for row in rows:
        value = row["scores"][metric]
        if _is_amount(value) and value <= 1:
            scores.append(float(value))
        elif isinstance(value, list) and len(value) == 2 and all(map(_is_amount, value)):
            scores.append((float(value[0]), float(value[1])))
        else:
            expected = "expected a number in [0, 1] or [points, of]"
            raise LlavaError(f"{folder}: doc_id {row['doc_id']} has {metric} {value!r}; {expected}")
    ratios = sum(isinstance(score, tuple) for score in scores)
    if ratios not in (0, len(scores)):
        raise LlavaError(f"{folder}: {metric} is [points, of] in {ratios} of {len(scores)} rows of {SAMPLES}")
    if ratios and not any(of for _, of in scores):
        raise LlavaError(f"{folder}: {metric} is out of 0 points in every row of {SAMPLES}")
    return scores


def _is_amount(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value) and value >= 0


def _compare(folder: Path, metric: str, mean: float | None, reported: float | None, tolerance: float) -> None:
    if mean is None or not isinstance(reported, int | float) or not abs(mean - reported) <= tolerance:
        raise LlavaError(f"{folder}: {metric} is {mean} over {SAMPLES} but {reported} in {RESULTS}")
