"""What `llava analyze` adds to a forward pass: seconds and peak memory of one with all probes, beside a plain one.

    python benchmarks/bench_analysis.py                                       # on a GPU, real sizes, 7,431 tokens
    python benchmarks/bench_analysis.py --device cpu --dtype float32          # some minutes a pass
    python benchmarks/bench_analysis.py --device cpu --dtype float32 --tiny   # seconds: that it runs

The real size is SigLIP so400m and Qwen2-0.5B, arm grid_manager, random weights, noise for an image. Both sides run the
model without its head and take turns, the first pair is thrown away; printed are medians, and the ratio of each pair's
seconds. Memory is that of the weights and what a pass takes at its peak. On a CPU seconds are processor time, all
threads together; on one that is busy with other work take OMP_NUM_THREADS=1, for threads that wait for each other count
as working. What must hold: at most 3 times the seconds, 1.2 times the memory.
"""

from statistics import median

import torch
from bench_sides import model_parser

from llava.analysis.data import NOT_OF_MODEL
from llava.analysis.record import PROBES, Recorder
from llava.bench.arms import ArmModel, Side
from llava.bench.meter import MIB, measure

MOST_SECONDS, MOST_MEMORY = 3.0, 1.2
Passes = dict[str, list[tuple[float, float | None]]]


def compare(bench: ArmModel, inputs: dict, pairs: int) -> Passes:
    """Of each side, the seconds and the MiB taken by each pass but the first."""
    model, found = bench.model.eval(), {"plain": [], "analysed": []}
    recorder = Recorder(model, list(PROBES))

    @torch.inference_mode()
    def plain() -> None:
        model.model(**inputs, use_cache=False)

    sides = {"plain": plain, "analysed": lambda: recorder.record(inputs)}
    for pair in range(pairs + 1):
        for name in list(sides)[:: 1 if pair % 2 else -1]:
            measured = measure(sides[name], model.device)
            if pair:
                found[name].append(measured)
    return found


def table(found: Passes, weights: float) -> str:
    """What `compare` measured, as lines. weights: in MiB."""
    lines, peaks = [], {}
    for name, passes in found.items():
        line = f"{name:<10}{median(seconds for seconds, _ in passes):>10.3f} s"
        if all(taken is not None for _, taken in passes):
            taken = max(taken for _, taken in passes)
            peaks[name] = weights + taken
            line += f"{peaks[name]:>12,.0f} MiB, {taken:,.0f} MiB of them beside the weights"
        lines.append(line)
    ratios = sorted(two[0] / one[0] for one, two in zip(found["plain"], found["analysed"]))
    spread = f"{median(ratios):>10.2f} times ({ratios[0]:.2f} to {ratios[-1]:.2f})"
    lines.append(f"seconds   {spread}; at most {MOST_SECONDS}")
    if len(peaks) == 2:
        lines.append(f"memory    {peaks['analysed'] / peaks['plain']:>10.2f} times; at most {MOST_MEMORY}")
    return "\n".join(lines)


def main() -> None:
    """Measures and prints."""
    parser = model_parser(__doc__)
    parser.add_argument("--pairs", type=int, default=3, help="of passes that are counted (default 3)")
    parser.add_argument("--image", default="1152x1152", help="its width and height (default 1152x1152)")
    parser.add_argument("--tiny", action="store_true", help="a model of a few thousand weights")
    options = parser.parse_args()
    layers = (options.vision_layers or options.layers, options.text_layers or options.layers)
    bench = ArmModel(options.device, options.dtype, *layers, options.tiny)
    bench.use(Side("grid_manager", "grid_manager"))
    width, height = map(int, options.image.split("x"))
    inputs = {key: value for key, value in bench.batch([(width, height)]).items() if key not in NOT_OF_MODEL}
    text, vision = bench.model.config.text_config, bench.model.config.vision_config
    print(
        f"{inputs['input_ids'].shape[1]:,} tokens, {len(inputs['pixel_values'])} crops; language model of "
        f"{text.num_hidden_layers} layers, {text.hidden_size} channels, {text.num_attention_heads} heads; tower of "
        f"{vision.num_hidden_layers} layers, {vision.hidden_size} channels; {bench.model.device}, {options.dtype}"
    )
    weights = sum(one.numel() * one.element_size() for one in bench.model.parameters()) / MIB
    print(table(compare(bench, inputs, options.pairs), weights))


if __name__ == "__main__":
    main()
