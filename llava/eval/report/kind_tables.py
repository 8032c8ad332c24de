"""A report by kind of question as text for the terminal, as Markdown, CSV and JSON."""

import csv
import io
import json
from dataclasses import asdict

from llava.eval.report.kinds import KindReport, KindTable
from llava.eval.report.layout import WIDTH, Table, markdown_page, text_page
from llava.eval.report.tables import cell_text, csv_difference, csv_score

COLUMNS = (
    "task", "metric", "field", "kind", "run", "value", "low", "high", "documents", "interval",
    "difference", "difference_low", "difference_high", "reference",
)  # fmt: skip


def render_text(report: KindReport, width: int = WIDTH) -> str:
    """A table for each task, of at most `width` columns."""
    return text_page(title(report), _tables(report), report.warnings, report.notes, width)


def render_markdown(report: KindReport) -> str:
    """The same in GitHub's Markdown."""
    return markdown_page(title(report), _tables(report), report.warnings, report.notes)


def render_csv(report: KindReport) -> str:
    """One line for each score."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for table in report.tables:
        about = {"task": table.task, "metric": table.metric, "field": table.field}
        for row in table.rows:
            for run, score in row.scores.items():
                values = csv_score(score) | csv_difference(report.reference, row.differences.get(run))
                writer.writerow(about | {"kind": row.kind, "run": run} | values)
    return stream.getvalue()


def render_json(report: KindReport) -> str:
    """The report's fields."""
    return json.dumps(asdict(report), indent=2, ensure_ascii=False) + "\n"


def title(report: KindReport) -> str:
    """What the scores are parted by."""
    fields = ", ".join(dict.fromkeys(table.field for table in report.tables))
    return f"{', '.join(dict.fromkeys(table.name for table in report.tables))} by {fields}"


def _tables(report: KindReport) -> list[Table]:
    return [_table(report, table) for table in report.tables]


def _table(report: KindReport, table: KindTable) -> Table:
    """Columns: kind, n, the runs, their differences to the reference; the first line, of all, above a rule."""
    runs = [run for run in report.runs if any(run in row.scores for row in table.rows)]
    compared = [run for run in runs if any(run in row.differences for row in table.rows)]
    lines: list[list[str] | None] = [
        [
            row.kind,
            row.documents,
            *(cell_text(row.scores.get(run), "-") for run in runs),
            *(cell_text(row.differences.get(run), "-") for run in compared),
        ]
        for row in table.rows
    ]
    metric = table.metric if table.higher_is_better else f"{table.metric} (lower is better)"
    head = [f"{table.name} {metric}", "n", *runs, *(f"{run} - {report.reference}" for run in compared)]
    return Table(head, [lines[0], None, *lines[1:]], names=1)
