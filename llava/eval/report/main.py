"""`llava eval report RUN ...`: prints finished runs side by side, and writes them as files and as a picture."""

import io
import shutil
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from llava.arguments import ArgumentParser
from llava.errors import LlavaError
from llava.paper import OVERALL_BY_ARM

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLES = ("bar", "radar")
PICTURE_SUFFIXES = (".png", ".svg")


def main(argv: list[str]) -> int:
    """Returns 0; raises LlavaError when a run is damaged or a choice does not fit the runs."""
    args = _parser().parse_args(argv)
    if args.picture is not None and args.picture.suffix not in PICTURE_SUFFIXES:
        raise LlavaError(f"--picture {args.picture}: a picture is a file named {' or '.join(PICTURE_SUFFIXES)}")
    reference = None if args.reference is None else args.reference.resolve().name
    pages = _by_kind(args, reference) if args.by else _by_benchmark(args, reference)
    print(pages.text(shutil.get_terminal_size((pages.width, 24)).columns), end="", flush=True)
    for file, render in ((args.markdown, pages.markdown), (args.csv, pages.csv), (args.json, pages.json)):
        if file is not None:
            _write(file, render().encode())
    if args.picture is not None:
        _write(args.picture, _picture(pages.draw, args.style, args.picture.suffix))
    return 0


class _Pages(NamedTuple):
    """A report in all its forms. width: of the terminal where that is not known. text: of a width. draw: in a style."""

    width: int
    text: Callable[[int], str]
    markdown: Callable[[], str]
    csv: Callable[[], str]
    json: Callable[[], str]
    draw: Callable[[str], "Figure"]


def _by_benchmark(args: Namespace, reference: str | None) -> _Pages:
    from llava.eval.report import tables  # imports numpy
    from llava.eval.report.comparison import build_report

    if args.tasks or args.data:
        raise LlavaError("--tasks and --data are for a report by kind of question; name a field with --by")
    report = build_report(args.runs, reference, _arms(args.paper), args.allow_missing)

    def draw(style: str) -> "Figure":
        from llava.eval.report.picture import draw  # imports matplotlib, which nothing else here needs

        return draw(report, style)

    forms = (tables.render_text, tables.render_markdown, tables.render_csv, tables.render_json)
    return _Pages(tables.WIDTH, *(partial(form, report) for form in forms), draw)


def _by_kind(args: Namespace, reference: str | None) -> _Pages:
    from llava.eval.report import kind_tables  # imports numpy
    from llava.eval.report.kinds import build_kind_report

    if args.paper or args.allow_missing:
        raise LlavaError("--paper and --allow_missing are about averages, which a report --by a field does not have")
    tasks = args.tasks and args.tasks.split(",")
    report = build_kind_report(args.runs, args.by, reference, tasks, args.data)

    def draw(style: str) -> "Figure":
        from llava.eval.report.kind_picture import draw_kinds  # imports matplotlib

        return draw_kinds(report, style)

    forms = (kind_tables.render_text, kind_tables.render_markdown, kind_tables.render_csv, kind_tables.render_json)
    return _Pages(kind_tables.WIDTH, *(partial(form, report) for form in forms), draw)


def _picture(draw: Callable[[str], "Figure"], style: str, suffix: str) -> bytes:
    if find_spec("matplotlib") is None:
        raise LlavaError("--picture needs matplotlib: pip install matplotlib")
    content = io.BytesIO()
    draw(style).savefig(content, format=suffix.removeprefix("."), dpi=150)
    return content.getvalue()


def _write(file: Path, content: bytes) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    except OSError as error:
        raise LlavaError(f"{file}: cannot be written: {error.strerror}") from error


def _arms(option: str | None) -> list[str] | None:
    if option is None:
        return None
    return [] if option == "none" else option.split(",")


def _parser() -> ArgumentParser:
    parser = ArgumentParser(prog="llava eval report", description="Tables of one or several evaluation runs.")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder written by llava eval --out")
    parser.add_argument(
        "--reference", type=Path, metavar="RUN", help="differences are to this run (default: the first)"
    )
    parser.add_argument(
        "--allow_missing",
        action="store_true",
        help="average also where tasks are missing, limited or have failed reviews: over those that every run has",
    )
    parser.add_argument(
        "--paper",
        metavar="ARMS",
        help=f"the paper's figures to show: {','.join(OVERALL_BY_ARM)} or none (default: of the models' arms)",
    )
    parser.add_argument(
        "--by",
        metavar="FIELD",
        help="in place of the benchmarks: scores by what this field of their documents says (question_types, "
        "metadata.task, ...); kind: each benchmark's own kinds of question",
    )
    parser.add_argument("--tasks", metavar="T,T,...", help="with --by: only these tasks")
    parser.add_argument(
        "--data", type=Path, metavar="ROOT", help="with --by: where documents are, whose field the runs did not store"
    )
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="also write the tables as Markdown")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="also write every score as a line of CSV")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write everything as JSON")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="also draw the scores, as .png or .svg")
    parser.add_argument("--style", choices=STYLES, default="bar", help="of the picture (default: bar)")
    return parser
