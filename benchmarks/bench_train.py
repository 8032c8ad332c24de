"""Time and memory of a training step (forward and backward) at the real sizes, and what ours saves.

    python benchmarks/bench_train.py                                           # the whole model, on a GPU
    python benchmarks/bench_train.py --device cpu --dtype float32 --layers 4   # a small machine
    python benchmarks/bench_train.py --overhead --device cpu --dtype bfloat16 --vision_layers 26 --text_layers 12

SigLIP so400m and Qwen2-0.5B with random weights, one sample, layers checkpointed as the recipes do. One arm and the
naive ways to compute it; each first shows that it computes the same loss (the four arms beside each other: `llava bench
budget`). Samples joined by + are one batch, padded, and also packed (data.packing). Then all take turns, so that what
else the machine does hits all of them. Printed are medians; memory is the most that a step holds beside weights and
inputs. --overhead takes turns of manager and baseline alone and prints what managers add; see bench_overhead.py.
Without --vision_layers and --text_layers that is the whole model, which takes about twice as long.
"""

import argparse
import json
from dataclasses import asdict, dataclass
from statistics import median

import torch
from bench_overhead import overhead, overhead_table
from bench_sides import NAIVE, model_parser, naive_sides, packed_side

from llava.bench.arms import ARMS, ArmModel, Side
from llava.bench.meter import measure_step
from llava.errors import LlavaError
from llava.mllm.cost import training_cost
from llava.mllm.parts import PREFIXES
from llava.train.mllm.counts import count_batch

INPUTS = ("384x384", "640x480", "1000x1000", "384x384+640x480")
TOLERANCES = {"float32": 1e-4, "bfloat16": 3e-2, "float16": 1e-2}  # of one loss computed in two ways, relative


@dataclass
class Result:
    """One side on one input. seconds, memory_mib: medians of the runs; memory is None where it cannot be measured."""

    side: str
    arm: str
    input: str
    crops: int
    tokens: int
    tflop: float
    loss: float
    seconds: float = 0.0
    memory_mib: float | None = None


def bench_input(bench: ArmModel, name: str, sides: list[Side], runs: int) -> list[Result]:
    """All sides on one input, in turns. Raises LlavaError when two sides of one arm compute different losses."""
    sizes = _pixels(name)
    results = [_described(bench, name, sizes, side) for side in sides]
    check_losses(results, TOLERANCES[str(bench.model.dtype).removeprefix("torch.")])
    measured = {side.name: [] for side in sides}
    for run in range(runs):
        for side in sides[:: 1 if run % 2 == 0 else -1]:
            bench.use(side)
            measured[side.name].append(measure_step(bench.model, side.loss, bench.batch(sizes, side.packing)))
    for result in results:
        seconds, memory = zip(*measured[result.side])
        result.seconds = median(seconds)
        result.memory_mib = None if None in memory else median(memory)
    return results


def _described(bench: ArmModel, name: str, sizes: list[tuple[int, int]], side: Side) -> Result:
    """What the side works on, and its loss; also the side's warm-up."""
    bench.use(side)
    batch = bench.batch(sizes, side.packing)
    with torch.no_grad():
        loss = side.loss(bench.model, batch).item()
    tokens, token_pairs, _, supervised, crops = count_batch(batch).tolist()
    tflop = training_cost(bench.model.config, PREFIXES)(crops, tokens, supervised, token_pairs) / 1e12
    return Result(side.name, side.arm, name, crops, tokens, tflop, loss)


def check_losses(results: list[Result], tolerance: float) -> None:
    """Raises LlavaError unless all sides of an arm have the loss of the arm itself, up to rounding."""
    ours = {result.arm: result.loss for result in results if result.side == result.arm}
    for result in results:
        if not abs(result.loss - ours[result.arm]) <= tolerance * abs(ours[result.arm]):
            raise LlavaError(
                f"{result.input}: '{result.side}' has a loss of {result.loss}, but {result.arm} has {ours[result.arm]}"
            )


def table(results: list[Result]) -> str:
    """The arm, then the naive ways as multiples of it."""
    ours, *naive = results
    return "\n".join(
        [
            _row(results[0].input, "crops", "tokens", "TFLOP", "seconds", "ratio", "memory MiB", "ratio"),
            _result_row(ours, ours),
            *(["instead:"] if naive else []),
            *(_result_row(result, ours) for result in naive),
        ]
    )


def _result_row(result: Result, base: Result) -> str:
    memory = ("-", "-")
    if result.memory_mib is not None:
        memory = (f"{result.memory_mib:,.0f}", f"{result.memory_mib / base.memory_mib:.2f}")
    speed = (f"{result.seconds:.2f}", f"{result.seconds / base.seconds:.2f}")
    return _row(result.side, f"{result.crops}", f"{result.tokens:,}", f"{result.tflop:.2f}", *speed, *memory)


def _row(name: str, *cells: str) -> str:
    return f"{name:<25}" + "".join(f"{cell:>{width}}" for cell, width in zip(cells, (6, 8, 8, 9, 7, 12, 7)))


def parse_arguments() -> argparse.Namespace:
    parser = model_parser(__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--arm", choices=ARMS, default=ARMS[-1])
    parser.add_argument("--naive", nargs="*", choices=NAIVE, default=NAIVE, help="naive ways to compare with")
    parser.add_argument("--inputs", nargs="+", default=INPUTS, metavar="WIDTHxHEIGHT[+...]")
    parser.add_argument("--tiny", action="store_true", help="tiny widths, to try this script out")
    parser.add_argument("--overhead", action="store_true", help="manager beside baseline alone, in pairs of steps")
    parser.add_argument("--pairs", type=int, default=20, help="of --overhead")
    parser.add_argument("--json", help="also write the numbers to this file")
    return parser.parse_args()


def _pixels(name: str) -> list[tuple[int, int]]:
    """The (width, height) of each sample of an input."""
    return [tuple(int(pixels) for pixels in sample.split("x")) for sample in name.split("+")]


def main() -> None:
    options = parse_arguments()
    bench = ArmModel(
        options.device,
        options.dtype,
        vision_layers=options.vision_layers or options.layers,
        text_layers=options.text_layers or options.layers,
        tiny=options.tiny,
    )
    config = bench.model.config
    print(
        f"{options.device}, {options.dtype}, {config.vision_config.num_hidden_layers} vision and "
        f"{config.text_config.num_hidden_layers} text layers, {len(bench.manager_config.vision_layers)} managed maps, "
        f"{len(bench.manager_config.injection_layers)} managers, "
        + (f"{torch.get_num_threads()} threads" if options.overhead else f"medians of {options.runs} runs")
    )
    if options.overhead:
        name = options.inputs[0]
        print(overhead_table(name, overhead(bench, _pixels(name), options.pairs)), flush=True)
        return
    results = []
    for name in options.inputs:
        sides = [Side(options.arm, options.arm), *naive_sides(options.arm, options.naive)]
        sides += [packed_side(options.arm)] if "+" in name else []
        found = bench_input(bench, name, sides, options.runs)
        print("", table(found), sep="\n", flush=True)
        results += found
    if options.json:
        with open(options.json, "w") as file:
            json.dump({"options": vars(options), "results": [asdict(result) for result in results]}, file, indent=1)


if __name__ == "__main__":
    main()
