"""A report as text for the terminal, as Markdown, CSV and JSON."""

import csv
import io
import json
from collections.abc import Callable
from dataclasses import asdict

from llava.eval.report.comparison import Report, Row, metric_label
from llava.eval.report.intervals import Difference, Score
from llava.eval.report.layout import WIDTH, Table, markdown_page, text_page
from llava.eval.suites import PAPER_BENCHMARKS

CSV_COLUMNS = (
    "table", "name", "benchmarks", "metric", "run", "value", "low", "high", "documents", "interval",
    "difference", "difference_low", "difference_high", "reference", "remark",
)  # fmt: skip


def render_text(report: Report, width: int = WIDTH) -> str:
    """Aligned tables of at most `width` columns; those that do not fit beside each other stand below."""
    return text_page(report.title, _tables(report), report.warnings, report.notes, width)


def render_markdown(report: Report) -> str:
    """GitHub Markdown: one table of benchmarks and averages, one of other tasks."""
    return markdown_page(report.title, _tables(report), report.warnings, report.notes)


def render_csv(report: Report) -> str:
    """One line per score: of a benchmark, an average, another task's metric, or the paper (run `paper: ARM`)."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, CSV_COLUMNS, lineterminator="\n")
    writer.writeheader()
    for kind, rows in (("benchmark", report.benchmarks), ("average", report.averages)):
        for row in rows:
            about = {"table": kind, "name": row.name, "benchmarks": len(row.tasks)}
            for run in [run for run in report.runs if run in row.scores or run in row.remarks]:
                writer.writerow(about | {"run": run} | _csv_values(report, row, run))
            for arm in [arm for arm in report.arms if arm in row.paper]:
                writer.writerow(
                    about | {"run": f"paper: {arm}", "benchmarks": len(PAPER_BENCHMARKS), "value": row.paper[arm]}
                )
    for (task, metric), scores in report.rows.items():
        for run, score in scores.items():
            difference = csv_difference(report.reference, report.row_differences[task, metric].get(run))
            writer.writerow(
                {"table": "task", "name": task, "metric": metric, "run": run} | csv_score(score) | difference
            )
    return stream.getvalue()


def _csv_values(report: Report, row: Row, run: str) -> dict:
    values: dict = {"remark": row.remarks.get(run, "")}
    if run in row.scores:
        values |= csv_score(row.scores[run])
    return values | csv_difference(report.reference, row.differences.get(run))


def csv_score(score: Score) -> dict:
    """A score in the columns of CSV."""
    return {column: value for column, value in asdict(score).items() if column in CSV_COLUMNS}


def csv_difference(reference: str, difference: Difference | None) -> dict:
    """A difference to the run `reference` in the columns of CSV."""
    if difference is None:
        return {}
    bounds = {"difference_low": difference.low, "difference_high": difference.high}
    return {"difference": difference.value, "reference": reference} | bounds


def render_json(report: Report) -> str:
    """The report's fields; "rows" as [{task, metric, scores: {run: {value, low, ...}}, differences: {run: ...}}]."""
    rows = [
        {
            "task": task,
            "metric": metric,
            "higher_is_better": (task, metric) not in report.lower_is_better,
            "scores": {run: asdict(score) for run, score in scores.items()},
            "differences": {run: asdict(value) for run, value in report.row_differences[task, metric].items()},
        }
        for (task, metric), scores in report.rows.items()
    ]
    fields = asdict(report)
    del fields["row_differences"], fields["lower_is_better"]
    return json.dumps(fields | {"rows": rows}, indent=2, ensure_ascii=False) + "\n"


def _tables(report: Report) -> list[Table]:
    tables = []
    if report.benchmarks:
        tables.append(_benchmark_table(report))
    if report.rows:
        tables.append(_task_table(report))
    return tables


def _task_table(report: Report) -> Table:
    """Columns: task, metric, the runs, their differences to the reference where they scored the same documents."""
    compared = [run for run in report.runs if any(run in cells for cells in report.row_differences.values())]
    lines = []
    for (task, metric), scores in report.rows.items():
        cells = [f"{scores[run]} n={scores[run].documents}" if run in scores else "-" for run in report.runs]
        cells += [cell_text(report.row_differences[task, metric].get(run), "-") for run in compared]
        lines.append([task, metric_label(report, task, metric), *cells])
    return Table(["task", "metric", *report.runs, *(_compared(run, report) for run in compared)], lines, names=2)


def _compared(run: str, report: Report) -> str:
    return f"{run} - {report.reference}"


def _benchmark_table(report: Report) -> Table:
    """Columns: benchmark, n, the runs, their differences to the reference, the paper's arms."""
    scored = [run for run in report.runs if any(run in row.scores or run in row.remarks for row in report.benchmarks)]
    compared = [run for run in scored if run != report.reference and report.reference in scored]
    columns: list[tuple[str, Callable[[Row], str]]] = [("benchmark", lambda row: row.label), ("n", _documents)]
    for run in scored:
        columns.append((run, lambda row, run=run: cell_text(row.scores.get(run), row.remarks.get(run, "-"))))
    for run in compared:
        columns.append((_compared(run, report), lambda row, run=run: cell_text(row.differences.get(run), "-")))
    if report.arms:
        columns.append((f"paper: {' / '.join(report.arms)}", lambda row: _paper(row, report.arms)))
    lines: list[list[str] | None] = [[cell(row) for _, cell in columns] for row in report.benchmarks]
    lines += [None, *([cell(row) for _, cell in columns] for row in report.averages)]
    return Table([head for head, _ in columns], lines, names=1)


def cell_text(value: Score | Difference | None, otherwise: str) -> str:
    """A value as a table has it, `otherwise` where there is none."""
    return otherwise if value is None else str(value)


def _paper(row: Row, arms: list[str]) -> str:
    if not row.paper:
        return "not given"
    partial = f" (of {len(PAPER_BENCHMARKS)})" if len(row.tasks) < len(PAPER_BENCHMARKS) else ""
    return "/".join(f"{row.paper[arm]:.2f}" for arm in arms) + partial


def _documents(row: Row) -> str:
    """The number of documents, `4/7` where the runs have different ones."""
    return "/".join(dict.fromkeys(str(score.documents) for score in row.scores.values())) or "-"
