"""`llava bench`: methods of fusion side by side, sweeps of one, Table IV, and tables of what was run."""

import json
import re
from argparse import Namespace
from pathlib import Path
from typing import get_args

from llava.arguments import ArgumentParser, shown, unknown
from llava.bench.entry import UNTIMED, Tiling, Tower
from llava.engine.checks import DTYPE_NAMES
from llava.errors import LlavaError
from llava.paper import TABLES

DESCRIPTION = """\
Trains every row (a method of fusion, a variant, a control) with every seed on every data set: the same samples in the
same steps, the learning rate of the new parts chosen for each row by a short grid on held-out samples. The same command
goes on from where it was; another setting is refused.
"""


def main(argv: list[str]) -> int:
    """Returns 0 when every row is complete, 1 when a job failed, 128 + N after a signal N."""
    parser = ArgumentParser(prog="llava bench", description="Benches, and their tables.")
    commands = parser.add_commands()
    fusion = commands.add_parser("fusion", help="methods of fusion side by side", description=DESCRIPTION)
    _add_fusion_arguments(fusion)
    table = commands.add_parser("table", help="the table and the picture of a bench, from its results.json")
    table.add_argument("results", type=Path, metavar="RESULTS", help="results.json of a bench")
    table.add_argument("--markdown", type=Path, help="write the table to this file")
    table.add_argument("--picture", type=Path, help="draw score against cost, .png or .svg; needs matplotlib")
    _add_seeds_arguments(commands.add_parser("seeds", help="one table of arms evaluated with several seeds"))
    budget = commands.add_parser("budget", help="Table IV: time, memory and operations of the four arms in turns")
    _add_budget_arguments(budget)
    _add_paper_arguments(commands.add_parser("paper", help="the numbers that the paper states, table by table"))
    arguments = parser.parse_args(argv)
    of_command = {"paper": _paper, "budget": _budget, "table": _table, "seeds": _seeds, "fusion": _fusion}
    return of_command[arguments.command](arguments)


def _fusion(arguments: Namespace) -> int:
    _check_numbers(arguments)
    from llava.bench.fusion import bench_from, run_bench, told

    bench = bench_from(arguments)
    if arguments.dry_run:
        print(told(bench))
        return 0
    return run_bench(bench)


def _add_fusion_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "sweep", nargs="?", type=Path, metavar="SWEEP.yaml", help="a sweep's values in place of methods"
    )
    parser.add_argument("--out", type=Path, help="folder (default playground/bench/fusion, or the sweep's name there)")
    parser.add_argument(
        "--methods", nargs="+", metavar="ROW", help="rows of the table, such as '*_zero' (default: all)"
    )
    parser.add_argument("--without", nargs="+", metavar="ROW", help="rows to leave out, such as 'none_like_*'")
    parser.add_argument("--data", nargs="+", default=["digit_pages"], help="data sets (default digit_pages)")
    parser.add_argument("--parts", default="tiny", help="tower and language model to start from (default tiny)")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each row and data set (default 3)")
    parser.add_argument("--tower", choices=get_args(Tower), default="trained", help="(default trained)")
    parser.add_argument("--tiling", choices=get_args(Tiling), help="(default anyres, or the sweep's)")
    parser.add_argument("--steps", type=int, default=100, help="of a run, behind its captions (default 100)")
    parser.add_argument("--grid_steps", type=int, default=40, help="of a run that tries a rate (default 40)")
    parser.add_argument(
        "--timed_steps", type=int, default=15, help="of a measurement, the first 3 uncounted (default 15)"
    )
    parser.add_argument("--rates", type=float, nargs="+", default=[5e-4, 2e-3], help="of the new parts, tried")
    parser.add_argument("--captions", type=int, default=2000, help="that the new parts learn from first (default 2000)")
    parser.add_argument("--samples", type=int, default=3200, help="conversations to train on (default 3200)")
    parser.add_argument(
        "--held_out", type=int, default=400, help="conversations that rates are chosen on (default 400)"
    )
    parser.add_argument("--documents", type=int, default=300, help="of the test (default 300)")
    parser.add_argument("--part_steps", type=int, help="of pretraining the parts (default: the parts' own)")
    parser.add_argument("--jobs", type=int, default=2, help="trainings side by side, of one thread each (default 2)")
    parser.add_argument("--dry_run", action="store_true", help="tell rows, runs, time and disk, and end")


def _add_seeds_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "arms", nargs="+", type=Path, metavar="ARM", help="folder with the runs seed1, seed2, .. of llava eval --out"
    )
    parser.add_argument("--task", default="digit_pages", help="digit_pages (default), text_pages, vqav2.test, ..")
    parser.add_argument("--seeds", type=int, metavar="N", help="read 1 to N (default: all that the arms have)")
    parser.add_argument("--reference", metavar="ARM", help="differences are to it (default: baseline, else the first)")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="also write the table as Markdown")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all that it is computed from")


def _add_budget_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--out", type=Path, default=Path("playground/bench/budget"), help="folder for budget.json and budget.md"
    )
    parser.add_argument("--device", default="auto", help="cuda or cpu (default: the GPU if there is one)")
    parser.add_argument("--dtype", choices=DTYPE_NAMES, help="(default bfloat16 on a GPU, float32 on a CPU)")
    parser.add_argument("--rounds", type=int, default=10, help="in each of which every arm has a turn (default 10)")
    parser.add_argument("--image", default="640x480", metavar="WIDTHxHEIGHT", help="of every sample (default 640x480)")
    parser.add_argument("--batch_size", type=int, default=2, help="of a step, and answers at once (default 2)")
    parser.add_argument("--new_tokens", type=int, default=4, help="of each answer (default 4)")
    parser.add_argument("--vision_layers", type=int, help="a cut of the tower (default: all 26)")
    parser.add_argument("--text_layers", type=int, help="a cut of the language model (default: all 24)")
    parser.add_argument("--tiny", action="store_true", help="tiny widths, to try it out")


def _add_paper_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("tables", nargs="*", metavar="TABLE", help=f"of {', '.join(TABLES)} (default: all)")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="also write them as Markdown")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="also write {table: {rows: {run: {benchmark: value}}}}"
    )


def _check_numbers(arguments: Namespace) -> None:
    for name, value in vars(arguments).items():
        if name == "timed_steps" and value <= UNTIMED + 1:
            raise LlavaError(f"--timed_steps must be above {UNTIMED + 1}; found {value}")
        values = value if isinstance(value, list) else [value]
        for one in values:
            if isinstance(one, int | float) and not isinstance(one, bool) and one <= 0:
                raise LlavaError(f"--{name} must be above 0; found {one:g}")
            if values.count(one) > 1:
                raise LlavaError(f"--{name} has {one} twice")


def _seeds(arguments: Namespace) -> int:
    _check_numbers(arguments)
    from llava.bench.seeds import join_seeds  # imports numpy
    from llava.bench.seeds_table import render_markdown, render_text
    from llava.bench.show import write

    joined = join_seeds(arguments.arms, arguments.task, arguments.reference, arguments.seeds)
    print(render_text(joined), end="", flush=True)
    if arguments.markdown is not None:
        write(arguments.markdown, render_markdown(joined).encode())
    if arguments.json is not None:
        write(arguments.json, (json.dumps(joined, indent=1) + "\n").encode())
    return 0


def _budget(arguments: Namespace) -> int:
    _check_numbers(arguments)
    size = re.fullmatch(r"(\d+)x(\d+)", arguments.image)
    if size is None or not all(map(int, size.groups())):
        raise LlavaError(f"--image must be WIDTHxHEIGHT in pixels, such as 640x480; found {shown(arguments.image)}")
    from llava.bench.arms import whole_layers  # imports torch
    from llava.bench.budget import BudgetSettings, run_budget
    from llava.bench.budget_table import render_markdown, render_text
    from llava.bench.show import write
    from llava.engine.placement import best_dtype, choose_device

    for name, most in zip(("vision_layers", "text_layers"), whole_layers(arguments.tiny), strict=True):
        layers = getattr(arguments, name)
        if layers is not None and layers > most:
            raise LlavaError(f"--{name} must be at most {most}; found {layers}")
    device = choose_device(arguments.device)
    names = ("batch_size", "new_tokens", "rounds", "vision_layers", "text_layers", "tiny")
    settings = BudgetSettings(
        device=str(device),
        dtype=arguments.dtype or str(best_dtype(device)).removeprefix("torch."),
        image=(int(size[1]), int(size[2])),
        **{name: getattr(arguments, name) for name in names},
    )
    arguments.out.mkdir(parents=True, exist_ok=True)
    results = run_budget(settings, arguments.out / "budget.json", lambda line: print(line, flush=True))
    print(f"\n{render_text(results)}", end="", flush=True)
    write(arguments.out / "budget.md", render_markdown(results).encode())
    return 0


def _paper(arguments: Namespace) -> int:
    from llava.bench.paper import as_json, render_markdown, render_text
    from llava.bench.show import write

    for name in arguments.tables:
        if name not in TABLES:
            raise LlavaError(unknown("table", name, list(TABLES)))
    names = arguments.tables or list(TABLES)
    print(render_text(names))
    if arguments.markdown is not None:
        write(arguments.markdown, (render_markdown(names) + "\n").encode())
    if arguments.json is not None:
        write(arguments.json, (json.dumps(as_json(names), indent=1) + "\n").encode())
    return 0


def _table(arguments: Namespace) -> int:
    from llava.bench.results import read_results  # imports numpy
    from llava.bench.show import draw_to, show

    results = read_results(arguments.results)
    show(results, arguments.markdown)
    if arguments.picture is not None:
        draw_to(results, arguments.picture)
    return 0
