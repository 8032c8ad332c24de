"""`llava eval cases RUN ...`: the documents where runs differ, as a page (DIR/index.html) and as PNGs beside it."""

from argparse import Namespace, RawDescriptionHelpFormatter
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from llava.arguments import ArgumentParser
from llava.errors import LlavaError
from llava.eval.cases.choose import TaskCases, choose_cases, name_runs
from llava.eval.kinds import KIND
from llava.files import whole_folder

PAGE = "index.html"
LIMIT, LEAST = 50, 0.5
NEEDED = ("datasets", "jinja2", "matplotlib")
DESCRIPTION = """\
Shows documents that runs answer differently: the picture with the boundaries of the tiles as white lines, the question,
what is expected, and every run's answer, green where it is right and red where it is wrong. Nothing is generated.
"""
EPILOG = """\
WHERE is one term or several, with commas or `and` between: RUN right, RUN wrong, RUN better than RUN, RUN worse than
RUN. For example: --where "grid wrong, grid_manager right". Runs are called by their folders; of two folders of one
name, by as much of the path as tells them apart.
"""


def main(argv: list[str]) -> int:
    """Returns 0; raises LlavaError when no document fits, or something is damaged or not to be had."""
    args = _parser().parse_args(argv)
    _check(args)
    names = name_runs(args.runs)
    chosen, remarks = choose_cases(names, args.where, args.task and args.task.split(","), args.limit, args.right)
    for package in NEEDED:
        if find_spec(package) is None:
            raise LlavaError(f"the page needs {package}: pip install {package}")
    from llava.eval.cases.entries import make_entries, tilings_of  # imports Pillow, jinja2 and datasets
    from llava.eval.cases.page import render_page

    tilings = {cases.task: tilings_of(cases.runs) for cases in chosen}
    if lost := sorted({run for of_task in tilings.values() for run, tiling in of_task.items() if tiling is None}):
        remarks.append(f"the tiles of {', '.join(lost)} are not drawn: the run did not store them, its model is gone")
    wanted = f"Documents where {args.where}." if args.where else "Documents that one run answers right and one wrong."
    try:
        with whole_folder(args.out) as folder:
            entries, counts, faults = [], [], []
            for cases in chosen:
                try:
                    entries += make_entries(cases, tilings[cases.task], args.by, args.data, len(chosen) == 1, folder)
                    counts.append(_count(cases))
                except LlavaError as error:
                    faults.append(error)
            if not entries:
                raise faults[0]
            remarks += [f"left out: {fault}" for fault in faults]
            sentences = [wanted, *counts, *remarks, f"Right is what has at least {args.right:g} of the full score."]
            page = render_page(" / ".join(names), sentences, _about(names, chosen), entries)
            (folder / PAGE).write_text(page, encoding="utf-8")
    except OSError as error:
        raise LlavaError(f"{args.out}: cannot be written: {error.strerror}") from error
    print("\n".join([*counts, *(f"note: {remark}" for remark in remarks), str(args.out / PAGE)]))
    return 0


def _count(cases: TaskCases) -> str:
    if cases.count > len(cases.choices):
        return f"{cases.name}: {cases.count} documents fit; the first {len(cases.choices)} are shown (--limit)."
    return f"{cases.name}: {cases.count} document{'s' if cases.count > 1 else ''}."


def _about(names: Mapping[str, Path], chosen: Sequence[TaskCases]) -> dict[str, str]:
    """What each run is, in words."""
    blocks = {name: run.run for cases in chosen for name, run in cases.runs.items()}
    return {name: _words(blocks[name]) if name in blocks else "has none of these tasks" for name in names}


def _words(block: dict) -> str:
    noise = "; it saw noise in place of the images" if block["image_noise"] else ""
    return f"{block['model']} (weights {block['weights']}){noise}"


def _check(args: Namespace) -> None:
    if args.limit < 1:
        raise LlavaError(f"--limit must be at least 1, found {args.limit}")
    if not 0 < args.right <= 1:
        raise LlavaError(f"--right must be above 0 and at most 1, found {args.right:g}")
    if args.out.exists() and not (args.out.is_dir() and not any(args.out.iterdir())):
        raise LlavaError(f"{args.out} exists and is not an empty folder; choose another --out")


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="llava eval cases",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder written by llava eval --out")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="a new folder for page and pictures")
    parser.add_argument("--task", metavar="T,T,...", help="only these tasks")
    parser.add_argument(
        "--where", metavar="WHERE", help="which documents, see below (default: one run is right and one is wrong)"
    )
    parser.add_argument(
        "--by", default=KIND, metavar="FIELD", help="the field of the documents that tells kinds, as in the report"
    )
    parser.add_argument("--data", type=Path, metavar="ROOT", help="where the documents are (default: where they were)")
    parser.add_argument(
        "--limit", type=int, default=LIMIT, metavar="N", help=f"documents of each task at most (default {LIMIT})"
    )
    parser.add_argument(
        "--right",
        type=float,
        default=LEAST,
        metavar="SHARE",
        help=f"from which share of the full score an answer is right (default {LEAST})",
    )
    return parser
