"""A report as text for the terminal, as Markdown, CSV and JSON."""

import csv
import io
import json
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from llava.eval.report.comparison import Report, Row, metric_label
from llava.eval.report.intervals import Difference, Score
from llava.eval.suites import PAPER_BENCHMARKS
from llava.text_table import markdown_table

WIDTH = 110  # of the terminal's tables: columns that do not fit beside the others stand below
HEAD_WIDTH = 19  # longer headings take several lines, where they have spaces
CSV_COLUMNS = (
    "table", "name", "benchmarks", "metric", "run", "value", "low", "high", "documents", "interval",
    "difference", "difference_low", "difference_high", "reference", "remark",
)  # fmt: skip


@dataclass(frozen=True)
class _Table:
    """head, lines: the first `names` columns name a line; None is a rule between lines."""

    head: list[str]
    lines: list[list[str] | None]
    names: int


def render_text(report: Report, width: int = WIDTH) -> str:
    """Aligned tables of at most `width` columns; those that do not fit beside each other stand below."""
    parts = [] if report.title is None else [_wrapped(report.title, width)]
    parts += [_aligned(table, columns) for table in _tables(report) for columns in _blocks(table, width)]
    parts += ["\n".join(_wrapped(f"WARNING {line}", width) for line in report.warnings)] if report.warnings else []
    parts.append("\n".join(_wrapped(line, width) for line in report.notes))
    return "\n\n".join(parts) + "\n"


def render_markdown(report: Report) -> str:
    """GitHub Markdown: one table of benchmarks and averages, one of other tasks."""
    parts = [] if report.title is None else [f"## {report.title}"]
    parts += ["\n".join(f"> **Warning:** {line}" for line in report.warnings)] if report.warnings else []
    for table in _tables(report):
        lines = [line for line in table.lines if line is not None]
        parts.append(markdown_table([table.head, *lines]))
    parts.append("\n".join(f"- {line}" for line in report.notes))
    return "\n\n".join(parts) + "\n"


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
            difference = _csv_difference(report, report.row_differences[task, metric].get(run))
            writer.writerow(
                {"table": "task", "name": task, "metric": metric, "run": run} | _csv_score(score) | difference
            )
    return stream.getvalue()


def _csv_values(report: Report, row: Row, run: str) -> dict:
    values: dict = {"remark": row.remarks.get(run, "")}
    if run in row.scores:
        values |= _csv_score(row.scores[run])
    return values | _csv_difference(report, row.differences.get(run))


def _csv_score(score: Score) -> dict:
    return {column: value for column, value in asdict(score).items() if column in CSV_COLUMNS}


def _csv_difference(report: Report, difference: Difference | None) -> dict:
    if difference is None:
        return {}
    bounds = {"difference_low": difference.low, "difference_high": difference.high}
    return {"difference": difference.value, "reference": report.reference} | bounds


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


def _tables(report: Report) -> list[_Table]:
    tables = []
    if report.benchmarks:
        tables.append(_benchmark_table(report))
    if report.rows:
        tables.append(_task_table(report))
    return tables


def _task_table(report: Report) -> _Table:
    """Columns: task, metric, the runs, their differences to the reference where they scored the same documents."""
    compared = [run for run in report.runs if any(run in cells for cells in report.row_differences.values())]
    lines = []
    for (task, metric), scores in report.rows.items():
        cells = [f"{scores[run]} n={scores[run].documents}" if run in scores else "-" for run in report.runs]
        cells += [_cell(report.row_differences[task, metric].get(run), "-") for run in compared]
        lines.append([task, metric_label(report, task, metric), *cells])
    return _Table(["task", "metric", *report.runs, *(_compared(run, report) for run in compared)], lines, names=2)


def _compared(run: str, report: Report) -> str:
    return f"{run} - {report.reference}"


def _benchmark_table(report: Report) -> _Table:
    """Columns: benchmark, n, the runs, their differences to the reference, the paper's arms."""
    scored = [run for run in report.runs if any(run in row.scores or run in row.remarks for row in report.benchmarks)]
    compared = [run for run in scored if run != report.reference and report.reference in scored]
    columns: list[tuple[str, Callable[[Row], str]]] = [("benchmark", lambda row: row.label), ("n", _documents)]
    for run in scored:
        columns.append((run, lambda row, run=run: _cell(row.scores.get(run), row.remarks.get(run, "-"))))
    for run in compared:
        columns.append((_compared(run, report), lambda row, run=run: _cell(row.differences.get(run), "-")))
    if report.arms:
        columns.append((f"paper: {' / '.join(report.arms)}", lambda row: _paper(row, report.arms)))
    lines: list[list[str] | None] = [[cell(row) for _, cell in columns] for row in report.benchmarks]
    lines += [None, *([cell(row) for _, cell in columns] for row in report.averages)]
    return _Table([head for head, _ in columns], lines, names=1)


def _cell(value: Score | Difference | None, otherwise: str) -> str:
    return otherwise if value is None else str(value)


def _paper(row: Row, arms: list[str]) -> str:
    if not row.paper:
        return "not given"
    partial = f" (of {len(PAPER_BENCHMARKS)})" if len(row.tasks) < len(PAPER_BENCHMARKS) else ""
    return "/".join(f"{row.paper[arm]:.2f}" for arm in arms) + partial


def _documents(row: Row) -> str:
    """The number of documents, `4/7` where the runs have different ones."""
    return "/".join(dict.fromkeys(str(score.documents) for score in row.scores.values())) or "-"


def _blocks(table: _Table, width: int) -> list[list[int]]:
    """The columns of each table that is printed: as many as fit in `width`, at least one beside those that name."""
    sizes = _sizes(table)
    names = list(range(table.names))
    blocks: list[list[int]] = [[]]
    for column in range(table.names, len(table.head)):
        if blocks[-1] and sum(sizes[index] + 2 for index in [*names, *blocks[-1], column]) - 2 > width:
            blocks.append([])
        blocks[-1].append(column)
    return [[*names, *block] for block in blocks]


def _sizes(table: _Table) -> list[int]:
    lines = [[max(_head_lines(head), key=len) for head in table.head]]
    lines += [line for line in table.lines if line is not None]
    return [max(map(len, cells)) for cells in zip(*lines, strict=True)]


def _head_lines(head: str) -> list[str]:
    return textwrap.wrap(head, HEAD_WIDTH, break_long_words=False, break_on_hyphens=False)


def _aligned(table: _Table, columns: list[int]) -> str:
    sizes = _sizes(table)
    heads = [_head_lines(head) for head in table.head]
    height = max(len(heads[column]) for column in columns)
    heads = [[*[""] * (height - len(head)), *head] for head in heads]
    rule = "  ".join("-" * sizes[column] for column in columns)

    def aligned(cells: Sequence[str]) -> str:
        return "  ".join(cells[column].ljust(sizes[column]) for column in columns).rstrip()

    top = [aligned([head[-height:][index] for head in heads]) for index in range(height)]
    return "\n".join([*top, rule, *(rule if line is None else aligned(line) for line in table.lines)])


def _wrapped(line: str, width: int) -> str:
    return textwrap.fill(line, width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
