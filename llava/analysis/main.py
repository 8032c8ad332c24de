"""`llava analyze`: what happens inside models, as the paper's figures."""

import signal
import sys
from argparse import Namespace
from pathlib import Path

from llava.analysis.figures import FIGURES, figures_named
from llava.arguments import ArgumentParser
from llava.checkpoint.folder import check_folder
from llava.engine.checks import SPREAD, check_dtype
from llava.errors import LlavaError

DESCRIPTION = """Runs models over the same data, each sample once, and draws what happens inside them: similarity of
layers and of managers, aggregation weights, entropy and diversity of attention. docs/analysis.md defines every figure.
What was recorded stays in --out: the same command goes on where it was stopped."""
PARTS = ("renormalised", "raw")


def main(argv: list[str]) -> int:
    """Returns 0, 128 + N after a signal N; raises LlavaError for wrong arguments and data."""
    arguments = _parser().parse_args(argv)
    figures = figures_named(arguments.figures)
    for name in ("limit", "batch_size"):
        if getattr(arguments, name) < 1:
            raise LlavaError(f"--{name} must be at least 1, found {getattr(arguments, name)}")
    check_dtype(arguments.dtype)
    if arguments.device == SPREAD:
        raise LlavaError(f"--device {SPREAD}: analyses run on one device")
    for folder in arguments.models:
        check_folder(folder)
    from llava.eval.workers import StopError, sole_writer, stoppable

    try:
        with stoppable(), sole_writer(arguments.out, ["analyze"]):
            return _analyse(arguments, figures)
    except StopError as stop:
        name = signal.Signals(stop.number).name
        print(f"\n{name}: stopped; what is recorded stays, and the same command goes on from there", file=sys.stderr)
        return 128 + stop.number


def _analyse(arguments: Namespace, figures: list[str]) -> int:
    from llava.analysis.data import open_source
    from llava.analysis.run import Options, analyse

    source = open_source(arguments.data, arguments.image_folder, arguments.data_root, arguments.limit)
    options = Options(
        figures=figures,
        out=arguments.out,
        batch_size=arguments.batch_size,
        device=arguments.device,
        dtype=arguments.dtype,
        attention=arguments.attention,
    )
    print("\n".join(analyse(arguments.models, source, options)))
    return 0


def _parser() -> ArgumentParser:
    parser = ArgumentParser(prog="llava analyze", description=DESCRIPTION)
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL", help="checkpoint folders")
    parser.add_argument(
        "--data", required=True, metavar="FILE|TASK", help="mixture YAML, JSON or JSONL of samples; or a task of eval"
    )
    parser.add_argument("--image_folder", default=".", help="of a file: folder that image and video paths count from")
    parser.add_argument("--data_root", type=Path, metavar="ROOT", help="of a task: local data, as llava eval's --data")
    parser.add_argument("--limit", type=int, default=100, metavar="N", help="only the first N examples (default 100)")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder of arrays, curves and pictures")
    parser.add_argument(
        "--figures", metavar="F,F,...", help=f"some of {', '.join(FIGURES)} (default: all that the models have)"
    )
    parser.add_argument(
        "--attention",
        choices=PARTS,
        default=PARTS[0],
        help="in the picture of figure 20, whether a query's weights of visual tokens are made to sum to 1 (default), "
        "or are as they are",
    )
    parser.add_argument("--batch_size", type=int, default=1, metavar="N", help="examples per pass (default 1)")
    parser.add_argument("--device", default="auto", metavar="NAME", help="cpu, cuda, ... (default: a GPU if any)")
    parser.add_argument("--dtype", default="auto", help="float32, bfloat16, float16 (default: bfloat16 on a GPU)")
    return parser
