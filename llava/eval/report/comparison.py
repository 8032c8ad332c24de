"""Runs side by side: scores of the benchmarks, their averages, and differences to one of the runs.

An average is given only where every task of its group is complete, unless the user allows less: then it is over the
tasks that every run has, so that its columns stay comparable, and the report's title says so.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llava.errors import LlavaError
from llava.eval.benchmarks import BENCHMARKS, CATEGORIES, PAPER_OVERALL, Benchmark
from llava.eval.report import intervals, provenance
from llava.eval.report.intervals import Difference, Score
from llava.eval.store import TaskRun, headline_metric, load_run, unscored_tasks

OVERALL, MISSING = "Overall", "missing"
GROUPS = {
    **{category: [known for known in BENCHMARKS if known.category == category] for category in CATEGORIES},
    OVERALL: list(BENCHMARKS),
    **{
        f"{kind} images": [known for known in BENCHMARKS if known.image_kind == kind]
        for kind in ("Natural", "Abstract", "Hybrid")
    },
    **{
        f"{resolution} resolution": [known for known in BENCHMARKS if known.resolution == resolution]
        for resolution in ("Low", "High")
    },
}


@dataclass(frozen=True)
class Row:
    """A benchmark, or an average over `tasks`.

    label: the name, for an average with the number of benchmarks. scores: run -> score. remarks: run -> why it has
    none. differences: run -> its score minus the reference's. paper: arm -> the paper's figure, where it gives one.
    """

    name: str
    label: str
    tasks: list[str]
    scores: dict[str, Score]
    remarks: dict[str, str]
    differences: dict[str, Difference]
    paper: dict[str, float]


@dataclass(frozen=True)
class Report:
    """title: None where no run has a benchmark. runs: for each column, for each task, its "run" block.

    reference: the run that differences are to. arms: whose figures of the paper are shown. rows: of the tasks that are
    no benchmark, (task, metric) -> column -> score; row_differences: likewise, to the reference's score on the same
    documents. warnings, notes: lines that go with the tables.
    """

    title: str | None
    runs: dict[str, dict[str, dict]]
    reference: str
    arms: list[str]
    benchmarks: list[Row]
    averages: list[Row]
    rows: dict[tuple[str, str], dict[str, Score]]
    row_differences: dict[tuple[str, str], dict[str, Difference]]
    warnings: list[str]
    notes: list[str]


@dataclass(frozen=True)
class _Result:
    """A run's score in one metric, its draws (R,), and a hash of the documents: equal ones are drawn together."""

    score: Score
    draws: np.ndarray
    documents: str


@dataclass(frozen=True)
class _Runs:
    """What runs have left.

    tasks: run -> task -> what it left. results: benchmark -> run -> its headline. faults: of the runs that have
    benchmarks, run -> task -> why it is not complete.
    """

    tasks: dict[str, dict[str, TaskRun]]
    results: dict[str, dict[str, _Result]]
    faults: dict[str, dict[str, str]]


def build_report(
    folders: Sequence[Path],
    reference: str | None = None,
    arms: Sequence[str] | None = None,
    allow_missing: bool = False,
) -> Report:
    """Reads the run folders; a column is called by its folder's name.

    reference: the run that differences are to, the first by default. arms: whose figures of the paper to show, by
    default those that the runs' checkpoints were trained as. allow_missing: average what every run has.
    Raises LlavaError when two folders share a name, one is damaged, or the reference or an arm is unknown.
    """
    tasks = _load_runs(folders)
    reference = reference or next(iter(tasks))
    if reference not in tasks:
        raise LlavaError(f"no run is called {reference!r}, the runs are {', '.join(tasks)}")
    for arm in arms or ():
        if arm not in PAPER_OVERALL:
            raise LlavaError(f"the paper has no arm {arm!r}, it has {', '.join(PAPER_OVERALL)}")
    present = [known for known in BENCHMARKS if any(known.task in run for run in tasks.values())]
    results = {known.task: _results(known.task, headline_metric(known), tasks) for known in present}
    faults = {name: _faults(folder, tasks[name]) for name, folder in zip(tasks, folders, strict=True)}
    benchmarked = {name: found for name, found in faults.items() if list(found.values()) != [MISSING] * len(BENCHMARKS)}
    runs = _Runs(tasks, results, benchmarked)
    others = _other_results(tasks)
    averages = [_average_row(runs, name, reference, allow_missing) for name in GROUPS] if present else []
    blocks = {name: {task: run.run for task, run in found.items()} for name, found in tasks.items()}
    shown = _arms(arms, blocks, averages)
    return Report(
        title=_title(runs, averages, allow_missing) if present else None,
        runs=blocks,
        reference=reference,
        arms=shown,
        benchmarks=[_benchmark_row(runs, known, reference) for known in present],
        averages=[row for row in averages if row.scores or row.remarks],
        rows={key: {name: found[name].score for name in tasks if name in found} for key, found in others.items()},
        row_differences={key: _differences(found, reference) for key, found in others.items()},
        warnings=[*_refusals(runs, allow_missing), *_unpaired(runs, others, reference), *provenance.warnings(blocks)],
        notes=provenance.notes(blocks, with_paper=bool(shown)),
    )


def _load_runs(folders: Sequence[Path]) -> dict[str, dict[str, TaskRun]]:
    runs: dict[str, dict[str, TaskRun]] = {}
    for folder in folders:
        name = folder.resolve().name
        if name in runs:
            raise LlavaError(f"{folder}: another run is already called {name!r}; rename one of the folders")
        runs[name] = {run.task: run for run in load_run(folder)}
    return runs


def _results(task: str, metric: str, tasks: dict[str, dict[str, TaskRun]]) -> dict[str, _Result]:
    """Of every run that has the metric; runs that scored the same documents are drawn together."""
    groups: dict[str, dict[str, np.ndarray]] = {}
    for name, found in tasks.items():
        if task in found and metric in found[task].scores:
            scores = found[task].scores[metric]
            pairs = [score if isinstance(score, tuple) else (score, 1.0) for score in scores]
            groups.setdefault(found[task].documents[metric], {})[name] = np.array(pairs)
    results = {}
    for documents, group in groups.items():
        draws = intervals.resample(f"{task} {metric}", np.stack(list(group.values())))
        for (name, scores_N2), row in zip(group.items(), draws, strict=True):
            results[name] = _Result(intervals.score(scores_N2, row), row, documents)
    return results


def _faults(folder: Path, found: dict[str, TaskRun]) -> dict[str, str]:
    """Why benchmarks of this run are not complete: task -> reason."""
    unscored = unscored_tasks(folder)
    faults = {}
    for known in BENCHMARKS:
        run = found.get(known.task)
        if run is None:
            faults[known.task] = "answers not scored" if known.task in unscored else MISSING
        elif run.failed_reviews:
            faults[known.task] = f"{run.failed_reviews} failed review{'s' if run.failed_reviews > 1 else ''}"
        elif not run.scores:
            faults[known.task] = "no score"
        elif lacking := run.run["documents"] - len(run.scores[headline_metric(known)]):
            faults[known.task] = f"{lacking} of {run.run['documents']} documents without a score"
        elif run.run["limit"] is not None and run.run["documents"] >= run.run["limit"]:
            faults[known.task] = f"first {run.run['limit']} documents only"
    return faults


def _differences(found: dict[str, _Result], reference: str) -> dict[str, Difference]:
    """Of the runs that scored the reference's documents: run -> its score minus the reference's."""
    base = found.get(reference)
    return {
        name: intervals.difference(result.score, base.score, result.draws, base.draws)
        for name, result in found.items()
        if name != reference and base is not None and base.documents == result.documents
    }


def _benchmark_row(runs: _Runs, known: Benchmark, reference: str) -> Row:
    found = runs.results[known.task]
    return Row(
        name=known.name,
        label=known.name,
        tasks=[known.task],
        scores={name: result.score for name, result in found.items()},
        remarks={name: runs.faults[name][known.task] for name in runs.faults if name not in found},
        differences=_differences(found, reference),
        paper={},
    )


def _average_row(runs: _Runs, name: str, reference: str, allow_missing: bool) -> Row:
    """The mean over a group. Runs without any of its tasks have neither score nor remark."""
    tasks = [known.task for known in GROUPS[name]]
    some = [run for run in runs.tasks if any(run in runs.results.get(task, ()) for task in tasks)]
    if allow_missing:
        tasks = [task for task in tasks if task in runs.results and all(run in runs.results[task] for run in some)]
        averaged = some if tasks else []
    else:
        averaged = [run for run in some if not any(task in runs.faults[run] for task in tasks)]
    scores, draws = {}, {}
    for run in averaged:
        parts = [runs.results[task][run] for task in tasks]
        draws[run] = np.mean([part.draws for part in parts], axis=0)
        scores[run] = intervals.average([part.score for part in parts], draws[run])
    differences = {
        run: intervals.difference(scores[run], scores[reference], draws[run], draws[reference])
        for run in averaged
        if run != reference and reference in scores and not _unpaired_tasks(runs, tasks, run, reference)
    }
    count = str(len(tasks)) if len(tasks) == len(GROUPS[name]) else f"{len(tasks)} of {len(GROUPS[name])}"
    return Row(
        name=name,
        label=f"{name} ({count})",
        tasks=tasks,
        scores=scores,
        remarks={run: "not averaged" for run in some if run not in scores},
        differences=differences,
        paper=PAPER_OVERALL if name == OVERALL else {},
    )


def _unpaired_tasks(runs: _Runs, tasks: Sequence[str], run: str, reference: str) -> list[str]:
    """The tasks that both runs have, on different documents."""
    found = [runs.results[task] for task in tasks]
    return [
        task
        for task, results in zip(tasks, found, strict=True)
        if run in results and reference in results and results[run].documents != results[reference].documents
    ]


def _refusals(runs: _Runs, allow_missing: bool) -> list[str]:
    if allow_missing or not runs.results or not (faults := _faults_in_words(runs)):
        return []
    return [f"no averages over what is incomplete in {faults}; --allow_missing averages what every run has"]


def _unpaired(runs: _Runs, others: dict[tuple[str, str], dict[str, _Result]], reference: str) -> list[str]:
    lines = []
    for run in runs.tasks:
        tasks = _unpaired_tasks(runs, list(runs.results), run, reference)
        for (task, _), found in others.items():
            if run in found and reference in found and found[run].documents != found[reference].documents:
                tasks.append(task)
        if tasks:
            names = ", ".join(dict.fromkeys(tasks))
            lines.append(f"{run} and {reference} have other documents in {names}: no difference is given")
    return lines


def _title(runs: _Runs, averages: Sequence[Row], allow_missing: bool) -> str:
    """How many of the benchmarks there are; of averages that do without some, which these are."""
    total, scored = len(BENCHMARKS), sum(1 for found in runs.results.values() if found)
    faults = _faults_in_words(runs)
    if not faults:
        return f"All {total} benchmarks"
    if not allow_missing:
        return f"{scored} of {total} benchmarks; incomplete groups are not averaged"
    averaged = next((len(row.tasks) for row in averages if row.name == OVERALL), 0)
    return f"PARTIAL AVERAGES, overall of {averaged} of {total} benchmarks: {faults}"


def _faults_in_words(runs: _Runs) -> str:
    """`grid (missing: gqa, mmvet; 3 failed reviews: dc100_en), ...`; runs with the same faults are named together."""
    names: dict[str, list[str]] = {}
    for name, faults in runs.faults.items():
        reasons: dict[str, list[str]] = {}
        for task, reason in faults.items():
            reasons.setdefault(reason, []).append(task)
        words = "; ".join(f"{reason}: {', '.join(tasks)}" for reason, tasks in reasons.items())
        names.setdefault(words, []).append(name)
    return ", ".join(f"{', '.join(named)} ({words})" for words, named in names.items() if words)


def _arms(asked: Sequence[str] | None, blocks: dict[str, dict[str, dict]], averages: Sequence[Row]) -> list[str]:
    """Whose figures are shown, by default those of the runs' arms, where a run has a score that one is given for."""
    if asked is not None:
        return list(asked) if averages else []
    return _recorded_arms(blocks) if any(row.paper and row.scores for row in averages) else []


def _recorded_arms(blocks: dict[str, dict[str, dict]]) -> list[str]:
    """The paper's arms among those that the runs' checkpoints were trained as, blind models left out."""
    arms = {run["arm"]: None for tasks in blocks.values() for run in tasks.values() if not run["image_noise"]}
    return [arm for arm in arms if arm in PAPER_OVERALL]


def _other_results(tasks: dict[str, dict[str, TaskRun]]) -> dict[tuple[str, str], dict[str, _Result]]:
    """Of the tasks that are no benchmark: (task, metric) -> run -> result."""
    named = {known.task for known in BENCHMARKS}
    metrics = {
        (task, metric): None
        for found in tasks.values()
        for task, run in found.items()
        for metric in run.scores
        if task not in named
    }
    return {(task, metric): _results(task, metric, tasks) for task, metric in metrics}
