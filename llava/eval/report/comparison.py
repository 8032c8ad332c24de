"""Runs side by side: scores of the benchmarks, averages over the suite `paper`, and differences to one of the runs.

An average is given only where every task of its group is complete, unless the user allows less: then it is over the
tasks that every run has, so that its columns stay comparable, and the report's title says so. Tasks outside the suite
stand in a table of their own and enter no average but that of a group of lmms-eval's.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llava.errors import LlavaError
from llava.eval.benchmark_row import Benchmark
from llava.eval.benchmarks import BENCHMARKS, CATEGORIES
from llava.eval.headline import headline_metric
from llava.eval.report import intervals, provenance
from llava.eval.report.intervals import Difference, Score
from llava.eval.report.results import Result, Results, group_results, lower_is_better, other_results, results_of
from llava.eval.store import TaskRun, load_run, unscored_tasks
from llava.eval.suites import PAPER_BENCHMARKS
from llava.paper import OVERALL_BY_ARM

OVERALL, MISSING = "Overall", "missing"
GROUPS = {
    **{category: [row for row in PAPER_BENCHMARKS if row.category == category] for category in CATEGORIES},
    OVERALL: list(PAPER_BENCHMARKS),
    **{
        f"{kind} images": [row for row in PAPER_BENCHMARKS if row.image_kind == kind]
        for kind in ("Natural", "Abstract", "Hybrid")
    },
    **{
        f"{resolution} resolution": [row for row in PAPER_BENCHMARKS if row.resolution == resolution]
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
    no benchmark, and the means of groups of them, (task, metric) -> column -> score; row_differences: likewise, to the
    reference's score on the same documents. lower_is_better: the rows of which that is so. warnings, notes: lines that
    go with the tables.
    """

    title: str | None
    runs: dict[str, dict[str, dict]]
    reference: str
    arms: list[str]
    benchmarks: list[Row]
    averages: list[Row]
    rows: dict[tuple[str, str], dict[str, Score]]
    row_differences: dict[tuple[str, str], dict[str, Difference]]
    lower_is_better: list[tuple[str, str]]
    warnings: list[str]
    notes: list[str]


@dataclass(frozen=True)
class _Runs:
    """What runs have left.

    tasks: run -> task -> what it left. results: benchmark -> run -> its headline. faults: of the runs that have
    benchmarks, run -> task -> why it is not complete.
    """

    tasks: dict[str, dict[str, TaskRun]]
    results: dict[str, dict[str, Result]]
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
    tasks = load_runs(folders)
    reference = reference_among(tasks, reference)
    for arm in arms or ():
        if arm not in OVERALL_BY_ARM:
            raise LlavaError(f"the paper has no arm {arm!r}, it has {', '.join(OVERALL_BY_ARM)}")
    present = [row for row in BENCHMARKS if any(row.task in run for run in tasks.values())]
    results = {row.task: results_of(row.task, headline_metric(row), tasks) for row in present}
    faults = {name: _faults(folder, tasks[name]) for name, folder in zip(tasks, folders, strict=True)}
    nothing = [MISSING] * len(PAPER_BENCHMARKS)
    runs = _Runs(tasks, results, {name: of_run for name, of_run in faults.items() if list(of_run.values()) != nothing})
    others = other_results(tasks)
    others |= group_results(tasks, results, others)
    averages = [_average_row(runs, name, reference, allow_missing) for name in GROUPS] if present else []
    blocks = {name: {task: run.run for task, run in of_run.items()} for name, of_run in tasks.items()}
    shown = _arms(arms, blocks, averages)
    return Report(
        title=_title(runs, averages, allow_missing) if present else None,
        runs=blocks,
        reference=reference,
        arms=shown,
        benchmarks=[_benchmark_row(runs, row, reference) for row in present],
        averages=[row for row in averages if row.scores or row.remarks],
        rows={key: {name: cells[name].score for name in tasks if name in cells} for key, cells in others.items()},
        row_differences={key: differences_to(cells, reference) for key, cells in others.items()},
        lower_is_better=lower_is_better(tasks),
        warnings=[*_refusals(runs, allow_missing), *_unpaired(runs, others, reference), *provenance.warnings(blocks)],
        notes=provenance.notes(blocks, with_paper=bool(shown)),
    )


def load_runs(folders: Sequence[Path]) -> dict[str, dict[str, TaskRun]]:
    """Run -> task -> what it left; a run is called by its folder. LlavaError when two folders share a name."""
    runs: dict[str, dict[str, TaskRun]] = {}
    for folder in folders:
        name = folder.resolve().name
        if name in runs:
            raise LlavaError(f"{folder}: another run is already called {name!r}; rename one of the folders")
        runs[name] = {run.task: run for run in load_run(folder)}
    return runs


def reference_among(runs: Iterable[str], reference: str | None) -> str:
    """The run that differences are to, the first by default. LlavaError when there is no such run."""
    names = list(runs)
    if reference is not None and reference not in names:
        raise LlavaError(f"no run is called {reference!r}, the runs are {', '.join(names)}")
    return reference or names[0]


def _faults(folder: Path, of_run: dict[str, TaskRun]) -> dict[str, str]:
    """Why benchmarks of the paper are not complete in this run: task -> reason."""
    unscored = unscored_tasks(folder)
    faults = {}
    for row in PAPER_BENCHMARKS:
        run = of_run.get(row.task)
        if run is None:
            faults[row.task] = "answers not scored" if row.task in unscored else MISSING
        elif run.failed_reviews:
            faults[row.task] = f"{run.failed_reviews} failed review{'s' if run.failed_reviews > 1 else ''}"
        elif not run.scores:
            faults[row.task] = "no score"
        elif lacking := run.run["documents"] - len(run.scores[headline_metric(row)]):
            faults[row.task] = f"{lacking} of {run.run['documents']} documents without a score"
        elif run.run["limit"] is not None and run.run["documents"] >= run.run["limit"]:
            faults[row.task] = f"first {run.run['limit']} documents only"
    return faults


def differences_to(results: dict[str, Result], reference: str) -> dict[str, Difference]:
    """Of the runs that scored the reference's documents: run -> its score minus the reference's."""
    base = results.get(reference)
    return {
        name: intervals.difference(result.score, base.score, result.draws, base.draws)
        for name, result in results.items()
        if name != reference and base is not None and base.documents == result.documents
        if base.draws is not None and result.draws is not None
    }


def _benchmark_row(runs: _Runs, row: Benchmark, reference: str) -> Row:
    results = runs.results[row.task]
    return Row(
        name=row.name,
        label=row.name,
        tasks=[row.task],
        scores={name: result.score for name, result in results.items()},
        remarks={name: runs.faults[name].get(row.task, MISSING) for name in runs.faults if name not in results},
        differences=differences_to(results, reference),
        paper={},
    )


def _average_row(runs: _Runs, name: str, reference: str, allow_missing: bool) -> Row:
    """The mean over a group. Runs without any of its tasks have neither score nor remark."""
    tasks = [row.task for row in GROUPS[name]]
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
        paper=OVERALL_BY_ARM if name == OVERALL else {},
    )


def _unpaired_tasks(runs: _Runs, tasks: Sequence[str], run: str, reference: str) -> list[str]:
    """The tasks that both runs have, on different documents."""
    of_tasks = [runs.results[task] for task in tasks]
    return [
        task
        for task, results in zip(tasks, of_tasks, strict=True)
        if run in results and reference in results and results[run].documents != results[reference].documents
    ]


def _refusals(runs: _Runs, allow_missing: bool) -> list[str]:
    if allow_missing or not runs.results or not (faults := _faults_in_words(runs)):
        return []
    return [f"no averages over what is incomplete in {faults}; --allow_missing averages what every run has"]


def _unpaired(runs: _Runs, others: Results, reference: str) -> list[str]:
    lines = []
    for run in runs.tasks:
        tasks = _unpaired_tasks(runs, list(runs.results), run, reference)
        for (task, _), cells in others.items():
            if run in cells and reference in cells and cells[run].documents != cells[reference].documents:
                tasks.append(task)
        if tasks:
            names = ", ".join(dict.fromkeys(tasks))
            lines.append(f"{run} and {reference} have other documents in {names}: no difference is given")
    return lines


def _title(runs: _Runs, averages: Sequence[Row], allow_missing: bool) -> str:
    """How many of the paper's benchmarks there are; of averages that do without some, which these are."""
    total, scored = len(PAPER_BENCHMARKS), sum(1 for row in PAPER_BENCHMARKS if runs.results.get(row.task))
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


def _arms(chosen: Sequence[str] | None, blocks: dict[str, dict[str, dict]], averages: Sequence[Row]) -> list[str]:
    """Whose figures are shown, by default those of the runs' arms, where a run has a score that one is given for."""
    if chosen is not None:
        return list(chosen) if averages else []
    return _recorded_arms(blocks) if any(row.paper and row.scores for row in averages) else []


def _recorded_arms(blocks: dict[str, dict[str, dict]]) -> list[str]:
    """The paper's arms among those that the runs' checkpoints were trained as, blind models left out."""
    arms = {run["arm"]: None for tasks in blocks.values() for run in tasks.values() if not run["image_noise"]}
    return [arm for arm in arms if arm in OVERALL_BY_ARM]


def metric_label(report: Report, task: str, metric: str) -> str:
    """The metric, and that lower is better where that is so."""
    return f"{metric} (lower is better)" if (task, metric) in report.lower_is_better else metric
