"""`llava eval report RUN ...`: prints finished runs side by side, and writes them as files and as a picture."""

import io
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from llava.arguments import ArgumentParser
from llava.errors import LlavaError
from llava.paper import OVERALL_BY_ARM

if TYPE_CHECKING:
    from llava.eval.report.comparison import Report

STYLES = ("bar", "radar")
PICTURE_SUFFIXES = (".png", ".svg")


def main(argv: list[str]) -> int:
    """Returns 0; raises LlavaError when a run is damaged or a choice does not fit the runs."""
    args = _parser().parse_args(argv)
    if args.picture is not None and args.picture.suffix not in PICTURE_SUFFIXES:
        raise LlavaError(f"--picture {args.picture}: a picture is a file named {' or '.join(PICTURE_SUFFIXES)}")
    from llava.eval.report.comparison import build_report  # imports numpy
    from llava.eval.report.tables import WIDTH, render_csv, render_json, render_markdown, render_text

    reference = None if args.reference is None else args.reference.resolve().name
    report = build_report(args.runs, reference, _arms(args.paper), args.allow_missing)
    print(render_text(report, shutil.get_terminal_size((WIDTH, 24)).columns), end="", flush=True)
    for file, render in ((args.markdown, render_markdown), (args.csv, render_csv), (args.json, render_json)):
        if file is not None:
            _write(file, render(report).encode())
    if args.picture is not None:
        _write(args.picture, _picture(report, args.style, args.picture.suffix))
    return 0


def _picture(report: "Report", style: str, suffix: str) -> bytes:
    if find_spec("matplotlib") is None:
        raise LlavaError("--picture needs matplotlib: pip install matplotlib")
    from llava.eval.report.picture import draw  # imports matplotlib, which nothing else here needs

    content = io.BytesIO()
    draw(report, style).savefig(content, format=suffix.removeprefix("."), dpi=150)
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
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="also write the tables as Markdown")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="also write every score as a line of CSV")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write everything as JSON")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="also draw the benchmarks, as .png or .svg")
    parser.add_argument("--style", choices=STYLES, default="bar", help="of the picture (default: bar)")
    return parser
