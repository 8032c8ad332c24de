"""Runs side by side by kind of question, as the paper's Figures 13, 15 and 17 have them: `--by FIELD`.

Scores are those that the runs stored; a document of several kinds counts in each.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from dataclasses import field as dataclass_field
from pathlib import Path

from llava.errors import LlavaError
from llava.eval.benchmarks import benchmark
from llava.eval.documents_again import check_same, lies_here, read_documents
from llava.eval.headline import headline_metric
from llava.eval.kinds import Kinds, field_names, no_such_field, read_kinds
from llava.eval.report import provenance
from llava.eval.report.comparison import differences_to, load_runs, reference_among
from llava.eval.report.intervals import Difference, Score
from llava.eval.report.results import results_of, unit_of
from llava.eval.store import TaskRun, documents_hash, read_rows, shown_tasks

ALL = "all"  # the row of all documents


@dataclass(frozen=True)
class KindRow:
    """One kind: run -> its score over the documents of the kind, and run -> that minus the reference's."""

    kind: str
    scores: dict[str, Score]
    differences: dict[str, Difference]

    @property
    def documents(self) -> str:
        """How many, `4/7` where runs have different ones."""
        return "/".join(dict.fromkeys(str(score.documents) for score in self.scores.values()))


@dataclass(frozen=True)
class KindTable:
    """One task in one metric. name: as the paper has it. field: that tells the kinds. rows: of all, then each kind."""

    task: str
    name: str
    metric: str
    field: str
    higher_is_better: bool
    rows: list[KindRow]


@dataclass(frozen=True)
class KindReport:
    """runs: for each column, for each task shown, its "run" block. reference: the run that differences are to."""

    by: str
    runs: dict[str, dict[str, dict]]
    reference: str
    tables: list[KindTable]
    warnings: list[str]
    notes: list[str]


@dataclass(frozen=True)
class _Parted:
    """A run's answers to a task. rows: as stored. kinds: of these documents."""

    run: TaskRun
    rows: list[dict]
    kinds: Kinds


@dataclass
class _FieldReader:
    """Finds kinds in what runs stored, else in their documents, read again.

    named: whether the user named the tasks: only then is the hub asked. fields: task -> those that were seen. faults:
    `RUN: why its documents could not be read again`.
    """

    field: str
    data: Path | None
    named: bool
    alone: bool
    fields: dict[str, list[str]] = dataclass_field(default_factory=dict)
    faults: list[str] = dataclass_field(default_factory=list)

    def read(self, name: str, run: TaskRun, rows: list[dict]) -> Kinds | None:
        """The kinds of the rows' documents, None where the field is not to be had."""
        kinds = self._seen(run.task, [row.get("doc") or {} for row in rows])
        return kinds or self._read_again(name, run, rows)

    def why_none(self) -> list[str]:
        """Why no document has the field, in sentences."""
        fields = {task: names for task, names in self.fields.items() if names}
        faults = dict.fromkeys(fault.partition(": ")[2] for fault in self.faults)
        return [*([no_such_field(self.field, fields)] if fields else []), *faults]

    def _seen(self, task: str, documents: Sequence[dict]) -> Kinds | None:
        self.fields[task] = list(dict.fromkeys([*self.fields.get(task, ()), *field_names(documents)]))
        return read_kinds(task, self.field, documents)

    def _read_again(self, name: str, run: TaskRun, rows: list[dict]) -> Kinds | None:
        if not lies_here(run, self.data) and not self.named:
            self.faults.append(f"{name}: the documents of {run.task} lie on the hub; --tasks {run.task} reads them")
            return None
        try:
            documents = read_documents(run, self.data, self.alone)
            check_same(run, rows, documents)
        except LlavaError as error:
            self.faults.append(f"{name}: {error}")
            return None
        from llava.eval.documents import without_images

        plain = without_images(documents)
        return self._seen(run.task, [plain[row["doc_id"]] for row in rows])


def build_kind_report(
    folders: Sequence[Path],
    field: str,
    reference: str | None = None,
    tasks: Sequence[str] | None = None,
    data: Path | None = None,
) -> KindReport:
    """Reads the run folders; a column is called by its folder's name.

    Args:
        folders: of the runs.
        field: of the documents; see llava/eval/kinds.py.
        reference: the run that differences are to, the first by default.
        tasks: only these.
        data: where documents lie that have to be read again; None: where they lay.

    Raises:
        LlavaError: as build_report, and when no document of any task has the field.
    """
    runs = load_runs(folders)
    reference = reference_among(runs, reference)
    places = dict(zip(runs, folders, strict=True))
    chosen = shown_tasks(runs, tasks)
    reader = _FieldReader(field, data, named=tasks is not None, alone=len(chosen) == 1)
    tables: list[KindTable] = []
    warnings: list[str] = []
    for task in chosen:
        parted: dict[str, _Parted] = {}
        for name in [name for name, of_run in runs.items() if task in of_run]:
            run, rows = runs[name][task], read_rows(places[name] / task)
            if kinds := reader.read(name, run, rows):
                parted[name] = _Parted(run, rows, kinds)
                warnings += _lacking(name, run)
        tables += [_table(task, metric, parted, reference) for metric in _metrics(parted)]
    if not tables:
        raise LlavaError("; ".join(warnings or reader.why_none()))
    shown = {table.task for table in tables}
    warnings = [fault for fault in reader.faults if any(f" {task}" in fault for task in shown)] + warnings
    blocks = {name: {task: run.run for task, run in of_run.items() if task in shown} for name, of_run in runs.items()}
    blocks = {name: block for name, block in blocks.items() if block}
    warnings += [*_unpaired(tables, reference), *provenance.warnings(blocks)]
    notes = ["A document of several kinds counts in each of them.", *provenance.notes(blocks, False, averages=False)]
    return KindReport(field, blocks, reference, tables, warnings, notes)


def _lacking(name: str, run: TaskRun) -> list[str]:
    """What does not count, in words."""
    documents = run.run["documents"]
    if not run.scores:
        why = f"{run.failed_reviews} failed reviews" if run.failed_reviews else "no score that is a mean of documents'"
        return [f"{name}: {run.task} has {why}"]
    metrics = {metric: documents - len(scores) for metric, scores in run.scores.items()}
    return [
        f"{name}: {count} of {documents} documents of {run.task} have no {metric} and do not count"
        for metric, count in metrics.items()
        if count and benchmark(run.task)
    ]


def _metrics(parted: dict[str, _Parted]) -> list[str]:
    """A benchmark's headline, another task's; of our own tasks all that every document has."""
    metrics: dict[str, None] = {}
    for part in parted.values():
        run = part.run
        row = benchmark(run.task)
        every = [metric for metric, scores in run.scores.items() if len(scores) == run.run["documents"]]
        named = [headline_metric(row)] if row else [run.headline.metric] if run.headline else every
        metrics |= dict.fromkeys(metric for metric in named if metric in run.scores)
    return list(metrics)


def _table(task: str, metric: str, parted: dict[str, _Parted], reference: str) -> KindTable:
    parted = {name: part for name, part in parted.items() if metric in part.run.scores}
    scale, percent = unit_of(task, metric, {name: {task: part.run} for name, part in parted.items()})
    names = [ALL]
    for part in sorted(parted.values(), key=lambda part: -len(part.kinds.names)):
        names += [kind for kind in part.kinds.names if kind not in names]
    rows = []
    for kind in names:
        key = f"{task} {kind}"  # by which it is drawn
        of_kind = {name: {key: _of_kind(part, metric, None if kind == ALL else kind)} for name, part in parted.items()}
        results = results_of(key, metric, of_kind, scale, percent)
        scores = {name: results[name].score for name in parted if name in results}
        rows.append(KindRow(kind, scores, differences_to(results, reference)))
    row, first = benchmark(task), next(iter(parted.values()))
    return KindTable(
        task=task,
        name=row.name if row else task,
        metric=metric,
        field=first.kinds.field,
        higher_is_better=first.run.headline is None or first.run.headline.higher_is_better,
        rows=[row for row in rows if row.scores],
    )


def _of_kind(part: _Parted, metric: str, kind: str | None) -> TaskRun:
    """What the run left of the documents of a kind, None for all; nothing where they would be out of no points."""
    scored = [
        (row, kinds) for row, kinds in zip(part.rows, part.kinds.of_document, strict=True) if metric in row["scores"]
    ]
    chosen = [
        (row, score)
        for (row, kinds), score in zip(scored, part.run.scores[metric], strict=True)
        if kind is None or kind in kinds
    ]
    scores = [score for _, score in chosen]
    if not any(score[1] if isinstance(score, tuple) else 1 for score in scores):
        return replace(part.run, scores={}, documents={})
    return replace(part.run, scores={metric: scores}, documents={metric: documents_hash([row for row, _ in chosen])})


def _unpaired(tables: Sequence[KindTable], reference: str) -> list[str]:
    lines: dict[str, None] = {}
    for table in tables:
        compared = [row for row in table.rows if reference in row.scores]
        names = [name for row in compared for name in row.scores if name not in (reference, *row.differences)]
        rest = f"and {reference} have other documents in {table.task}: where they do, no difference"
        lines |= dict.fromkeys(f"{name} {rest}" for name in names)
    return list(lines)
