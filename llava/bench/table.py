"""The table of a bench, for the terminal and as Markdown, computed from its results alone."""

from collections.abc import Callable, Sequence
from typing import Any

from llava.bench.cells import ABSENT, by_seed, interval, marked
from llava.bench.controls import NOTE as CONTROLS_NOTE
from llava.bench.controls import control_cells
from llava.bench.results import Line, table_lines
from llava.text_table import markdown_table, text_table

BUSY = 1.15  # times as long on the clock as on the processor
NOTES = (
    "exact match: percent of the questions, mean over seeds, 95% interval of the bootstrap over documents and seeds",
    "- none: difference to `none`; boot: 95% interval of the paired bootstrap over documents and seeds; t: Student's, "
    "over the seeds' differences; * where both leave out 0",
    "loss: of held-out conversations after the last step, mean over seeds; its difference to `none` with Student's "
    "interval over the seeds",
    "new: parameters that are drawn anew (projector, fusion, newline), of all; GFLOP of a mean sample, from the sizes, "
    "text by its bytes; rate: of the new parts, chosen on held-out samples, < or > where it is an end of the grid",
)


def _of_score(cell: Callable[[Any], str]) -> Callable[[Line], str]:
    return lambda line: ABSENT if line.score is None else cell(line.score)


def _loss_difference(line: Line) -> str:
    difference = line.loss.difference if line.loss is not None else None
    if difference is None:
        return ABSENT
    return f"{difference.value:+.4f} [{difference.low:+.4f}, {difference.high:+.4f}]"


def _rate(line: Line) -> str:
    rate, tried = line.measured["rate"], [rate for rate, _ in line.measured["grid"]]
    if rate is None:
        return ABSENT
    if not tried:  # a single rate
        return f"{rate:g}"
    end = "<" if rate == min(tried) else ">" if rate == max(tried) else ""
    return f"{end}{rate:g}"


def step_seconds(measured: dict[str, Any]) -> float:
    """Of a step: of the one thread on a CPU, where other work on the machine does not count; on a GPU on the clock."""
    return measured["step_seconds"]["processor" if measured["device"] == "cpu" else "clock"]


def columns(results: dict[str, Any]) -> list[tuple[str, Callable[[Line], str]]]:
    """(head, cell of a line) of every column; the first name a line."""
    kinds = dict.fromkeys(question["kind"] for of_data in results["data"].values() for question in of_data["questions"])
    several = len(results["data"]) > 1
    return [
        *([("data", lambda line: line.data)] if several else []),
        ("row", lambda line: line.row),
        ("exact match", _of_score(lambda score: str(score.score))),
        ("- none", _of_score(marked)),
        ("boot", _of_score(lambda score: interval(score.difference))),
        ("t", _of_score(lambda score: interval(score.difference_t))),
        ("by seed", _of_score(by_seed)),
        ("loss", lambda line: ABSENT if line.loss is None else f"{line.loss.mean:.4f}"),
        ("loss - none, t", _loss_difference),
        *(
            (
                kind,
                _of_score(lambda score, kind=kind: f"{score.by_kind[kind]:.1f}" if kind in score.by_kind else ABSENT),
            )
            for kind in kinds
        ),
        ("new", lambda line: f"{line.measured['parameters']['new']:,}"),
        ("parameters", lambda line: f"{line.measured['parameters']['total']:,}"),
        ("forward GFLOP", lambda line: f"{line.measured['flops']['forward'] / 1e9:.4g}"),
        ("training GFLOP", lambda line: f"{line.measured['flops']['training'] / 1e9:.4g}"),
        ("s/step", lambda line: f"{step_seconds(line.measured):.3f}"),
        ("ms/answer", lambda line: f"{1000 * line.measured['seconds_per_answer']:.1f}"),
        ("GiB", lambda line: f"{line.measured['peak_memory_gib']:.2f}"),
        ("rate", _rate),
    ]


def render_text(results: dict[str, Any], width: int) -> str:
    """Aligned, of at most `width` letters a line: columns that do not fit beside the others stand below."""
    parts = columns(results)
    names = 2 if parts[0][0] == "data" else 1
    lines = table_lines(results)
    cells = [[head, *(cell(line) for line in lines)] for head, cell in parts]
    sizes = [max(map(len, column)) + 2 for column in cells]
    blocks: list[list[int]] = [[]]
    for column in range(names, len(cells)):
        if blocks[-1] and sum(sizes[:names]) + sum(sizes[one] for one in [*blocks[-1], column]) - 2 > width:
            blocks.append([])
        blocks[-1].append(column)
    tables = []
    for block in blocks:
        rows = list(zip(*(cells[column] for column in [*range(names), *block]), strict=True))
        tables.append(text_table(rows, right=[*[False] * names, True]))
    notes = [*NOTES, *_remarks(results, lines)]
    if controls := control_cells(results):
        tables.append(text_table(controls, right=[*[False] * (names + 1), True]))
        notes.append(CONTROLS_NOTE)
    return "\n\n".join([*tables, "\n".join(notes)]) + "\n"


def render_markdown(results: dict[str, Any]) -> str:
    """One table, and one of the controls; then what their columns mean."""
    lines, parts = table_lines(results), columns(results)
    tables = [markdown_table([[head for head, _ in parts], *([cell(line) for _, cell in parts] for line in lines)])]
    notes = [*NOTES, *_remarks(results, lines)]
    if controls := control_cells(results):
        tables.append(markdown_table(controls))
        notes.append(CONTROLS_NOTE)
    return "\n\n".join([*tables, "\n".join(f"- {note}" for note in notes)]) + "\n"


def _described(lines: Sequence[Line], name: str) -> str:
    """What a row's model says of its fusion; nothing where it was not measured."""
    return next((line.measured["described"] for line in lines if line.row == name), "")


def _remarks(results: dict[str, Any], lines: Sequence[Line]) -> list[str]:
    """What a reader must know of these results."""
    settings = results["settings"]
    rates = ", ".join(f"{rate:g}" for rate in settings["rates"])
    remarks = [
        f"{results['seeds']} seeds, {settings['steps']} steps behind {settings['captions']} captions, tower "
        f"{settings['tower']}, tiling {settings['tiling']}, parts {settings['parts']}; rates {rates} of "
        f"{settings['grid_steps']} steps on held-out samples"
    ]
    remarks += [of_data["remark"] for of_data in results["data"].values() if of_data.get("remark")]
    if "sweep" in results:
        remarks[:0] = [results["sweep"]["title"], *results["sweep"]["remarks"]]
        values = results["sweep"]["values"]
        remarks += [f"{name}: {of_value}" for name in values if (of_value := _described(lines, name))]
    unfinished = [f"{line.data} {line.row}" for line in lines if line.score is None]
    if unfinished:
        remarks.append(f"without a score, since not all their seeds are done: {', '.join(unfinished)}")
    remarks += [f"left out: {name}: {why}" for name, why in results["left_out"].items()]
    busy = [
        line
        for line in lines
        if line.measured["device"] == "cpu"
        and line.measured["step_seconds"]["clock"] > BUSY * line.measured["step_seconds"]["processor"]
    ]
    if busy:
        remarks.append(f"the machine was busy with other work while {len(busy)} of {len(lines)} rows were measured")
    commits = {
        run["git"] for of in results["data"].values() for row in of["rows"].values() for run in row["seeds"].values()
    }
    if len(commits) > 1:
        remarks.append(
            f"the runs are of {len(commits)} versions of the code: {', '.join(map(str, sorted(map(str, commits))))}"
        )
    return remarks
