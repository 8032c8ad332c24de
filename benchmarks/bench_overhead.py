"""What managers add to a training step: the arms `manager` and `baseline` in turns, step by step.

Each pair of steps gives one ratio, so that what slows the machine down for longer than a step hits both; the order
within a pair changes each time. Printed are the medians of the ratios with the interval in which the median lies with
95% confidence, by order statistics; beside them the ratio of operations that were launched and of the FLOPs, which is
the least that can be expected where arithmetic decides.
"""

import time
from statistics import median

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from llava.bench.arms import ArmModel, Side
from llava.bench.meter import median_interval
from llava.mllm.cost import training_cost
from llava.mllm.parts import PREFIXES
from llava.train.mllm.counts import count_batch


class Launches(TorchDispatchMode):
    """Counts operations that compute something: views launch no kernel."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += not function.is_view
        return function(*args, **(kwargs or {}))


def overhead(bench: ArmModel, sizes: list[tuple[int, int]], pairs: int) -> dict:
    """{"wall", "cpu": ratios of each pair; "seconds": medians by arm; "launches", "tflop": by arm}."""
    sides, batches = [Side(arm, arm) for arm in ("baseline", "manager")], {}
    found = {"wall": [], "cpu": [], "launches": {}, "tflop": {}}
    for side in sides:
        bench.use(side)
        batch = batches[side.name] = bench.batch(sizes)
        _step(bench, side, batch)  # what is set up once
        with Launches() as launches:
            _step(bench, side, batch)
        tokens, token_pairs, _, supervised, crops = count_batch(batch).tolist()
        cost = training_cost(bench.model.config, PREFIXES)
        found["launches"][side.name] = launches.count
        found["tflop"][side.name] = cost(crops, tokens, supervised, token_pairs) / 1e12
    taken = {side.name: [] for side in sides}
    for pair in range(pairs):
        for side in sides[:: 1 if pair % 2 == 0 else -1]:
            bench.use(side)
            taken[side.name].append(_step(bench, side, batches[side.name]))
    for place, clock in enumerate(("wall", "cpu")):
        found[clock] = [two[place] / one[place] for one, two in zip(taken["baseline"], taken["manager"])]
    found["seconds"] = {name: median(wall for wall, _ in times) for name, times in taken.items()}
    return found


def _step(bench: ArmModel, side: Side, batch: dict) -> tuple[float, float]:
    """Seconds of a forward and backward pass: of the clock, and of the processor."""
    bench.model.zero_grad()
    on_gpu = bench.model.device.type == "cuda"
    if on_gpu:
        torch.cuda.synchronize()
    wall, cpu = time.perf_counter(), time.process_time()
    side.loss(bench.model, batch).backward()
    if on_gpu:
        torch.cuda.synchronize()
    return time.perf_counter() - wall, time.process_time() - cpu


def overhead_table(name: str, found: dict) -> str:
    """What `overhead` measured, as lines."""

    def ratio(label: str, values: list[float]) -> str:
        low, high = median_interval(values)
        return f"{label:<26}{median(values):>7.3f}   {low:.3f} to {high:.3f}, {len(values)} pairs"

    def quotient(label: str, of: dict, form: str) -> str:
        both = f"{of['manager']:{form}} / {of['baseline']:{form}}"
        return f"{label:<26}{of['manager'] / of['baseline']:>7.3f}   {both}"

    return "\n".join(
        [
            f"{name}: manager / baseline",
            ratio("seconds of the clock", found["wall"]),
            ratio("seconds of the processor", found["cpu"]),
            quotient("operations launched", found["launches"], ",d"),
            quotient("FLOPs, the floor", found["tflop"], ".4g"),
            f"medians: manager {found['seconds']['manager']:.3f} s, baseline {found['seconds']['baseline']:.3f} s",
        ]
    )
