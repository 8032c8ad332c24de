"""`llava analyze`: what happens inside models, as the paper's figures."""

import signal
import sys
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from llava.analysis.figures import FIGURES, figures_named
from llava.arguments import ArgumentParser
from llava.checkpoint.folder import CONFIG, check_folder, model_type_of
from llava.constants import MODEL_TYPE
from llava.engine.checks import SPREAD, check_dtype
from llava.errors import LlavaError
from llava.text_files import read_json
from llava.two_tower.parts import MODEL_TYPE as TWO_TOWER

if TYPE_CHECKING:
    from llava.analysis.data import Source

DESCRIPTION = """Runs models over the same data, each sample once, and draws what happens inside them: similarity of
layers and of managers, aggregation weights, entropy and diversity of attention. docs/analysis.md defines every figure.
What was recorded stays in --out: the same command goes on where it was stopped, and other data need another folder."""
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
    two_tower = _are_two_tower(arguments.models)
    if two_tower and arguments.figures is None:
        figures = [name for name in figures if FIGURES[name].of_two_towers]
    from llava.eval.workers import StopError, sole_writer, stoppable

    try:
        with stoppable(), sole_writer(arguments.out, ["analyze"]):
            return _analyse(arguments, figures, two_tower)
    except StopError as stop:
        name = signal.Signals(stop.number).name
        print(f"\n{name}: stopped; what is recorded stays, and the same command goes on from there", file=sys.stderr)
        return 128 + stop.number


def _are_two_tower(folders: list[Path]) -> bool:
    """Whether the models are two-tower models. Raises LlavaError for folders without a model, and for both families."""
    for folder in folders:
        check_folder(folder, model_types=(MODEL_TYPE, TWO_TOWER))
    kinds = [model_type_of(folder) == TWO_TOWER for folder in folders]
    if any(kinds) and not all(kinds):
        one, other = folders[kinds.index(True)], folders[kinds.index(False)]
        raise LlavaError(f"{one} is a two-tower model and {other} is none: their data differ, analyse them apart")
    return all(kinds)


def _source(arguments: Namespace, two_tower: bool) -> "Source":
    data, root, limit = arguments.data, arguments.data_root, arguments.limit
    if two_tower:
        from llava.analysis.pairs import PairSource

        task = read_json(arguments.models[0] / CONFIG).get("task", "pretrain")
        return PairSource(data, task, root, arguments.image_folder, limit)
    from llava.analysis.data import open_source

    return open_source(data, arguments.image_folder or ".", root, limit)


def _analyse(arguments: Namespace, figures: list[str], two_tower: bool) -> int:
    from llava.analysis.run import Options, analyse

    source = _source(arguments, two_tower)
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
        "--data",
        required=True,
        metavar="FILE|TASK",
        help="a file of samples (of pairs for two-tower models), or a task",
    )
    parser.add_argument("--image_folder", help="of a file: folder that paths of images and videos count from")
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
