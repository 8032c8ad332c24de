"""What a GPU holds of a model while it trains, but for activations: weights, gradients, optimizer states and buffers.

States are counted as torch and DeepSpeed 0.19 allocate them, for P parameters, T of them trained, n processes and
w bytes of the precision (2 in bf16, 4 in fp32). The 12 T are the K = 12 of ZeRO (Rajbhandari et al. 2020, section 3).

| state     | no ZeRO         | ZeRO-1   | ZeRO-2   | ZeRO-3   |                                                     |
|-----------|-----------------|----------|----------|----------|-----------------------------------------------------|
| weights   | 4 T + w (P - T) | w P      | w P      | w P / n  | without ZeRO autocast works with fp32 trained ones  |
| gradients | 4 T             | 4 T      | 4 T / n  | 4 T / n  | w for 4 where a file does not add up in fp32        |
| optimizer | 8 T             | 12 T / n | 12 T / n | 12 T / n | two moments; under ZeRO also the fp32 weights       |

Buffers. No ZeRO: DDP's buckets, 4 T, and in bf16 autocast's copies of weights, 2 T. ZeRO-1 that adds up bf16 in fp32
(bf16_optimizer.py): the copies that are reduced at a step's end, in fp32 and in bf16, 6 T. Else, and ZeRO-2
(zero/stage_1_and_2.py): a bucket of w `reduce_bucket_size`, two if communication overlaps. ZeRO-3 (zero/stage3.py): one
bucket, and the weights that are gathered while they are in use, at most w min(P, stage3_max_live_parameters)
(1 - 1 / n). Those with buckets: the step's fp32 gradients, 4 T / n. What is offloaded counts for the host.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from llava.text_files import read_json
from llava.train.loop.components import Component

FP32 = 4
MOMENTS = 2 * FP32  # AdamW's exp_avg and exp_avg_sq
# Elements, of the shipped configurations; None is transformers' hidden_size squared.
BUCKET = {1: 200_000_000, 2: 200_000_000, 3: None}
STATES = ("weights", "gradients", "optimizer")


@dataclass(frozen=True)
class Strategy:
    """How states are spread. stage: 0 is plain data parallelism. bucket, max_live: in elements.

    sums_in_fp32: micro-batches' gradients are added up in float32 whatever the precision.
    """

    name: str
    stage: int
    bucket: int = 0
    overlap: bool = True
    max_live: int = 1_000_000_000
    sums_in_fp32: bool = False
    offload_optimizer: bool = False
    offload_weights: bool = False


@dataclass(frozen=True)
class Estimate:
    """Bytes on one GPU under `strategy`. states: {component: {"weights" | "gradients" | "optimizer": bytes}}.

    host: bytes of what was offloaded, for each process.
    """

    strategy: Strategy
    states: dict[str, dict[str, float]]
    buffers: float
    activations: float
    host: float

    @property
    def total(self) -> float:
        """All of it, in bytes."""
        return sum(sum(parts.values()) for parts in self.states.values()) + self.buffers + self.activations


def strategies(deepspeed: str | None, hidden_size: int) -> tuple[list[Strategy], Strategy]:
    """No ZeRO, ZeRO-1, 2 and 3, the recipe's own in the place of its stage or behind them; and the recipe's own.

    Args:
        deepspeed: the recipe's run.deepspeed.
        hidden_size: of the language model.
    """
    shown = [Strategy("no ZeRO", 0)]
    shown += [
        Strategy(f"ZeRO-{stage}", stage, bucket or hidden_size**2, sums_in_fp32=True)
        for stage, bucket in BUCKET.items()
    ]
    if deepspeed is None:
        return shown, shown[0]
    used = read_strategy(deepspeed, hidden_size)
    if used.offload_optimizer or used.offload_weights or used.stage not in [strategy.stage for strategy in shown]:
        return [*shown, used], used
    return [used if strategy.stage == used.stage else strategy for strategy in shown], used


def read_strategy(path: str, hidden_size: int) -> Strategy:
    """What a DeepSpeed file asks for; `auto` is what transformers puts in its place."""
    config = read_json(path, by_hand=True)
    zero = config.get("zero_optimization", {})
    stage = zero.get("stage", 0)
    bucket = zero.get("reduce_bucket_size", 5e8)
    offloads = [zero.get(key, {}).get("device", "none") != "none" for key in ("offload_optimizer", "offload_param")]
    return Strategy(
        f"ZeRO-{stage} offload" if any(offloads) else f"ZeRO-{stage}",
        stage,
        bucket=hidden_size**2 if bucket == "auto" else int(bucket),
        overlap=zero.get("overlap_comm", stage == 3),
        max_live=int(zero.get("stage3_max_live_parameters", 1e9)),
        sums_in_fp32=config.get("data_types", {}).get("grad_accum_dtype") == "fp32",
        offload_optimizer=offloads[0],
        offload_weights=offloads[1],
    )


def estimate(
    strategy: Strategy, components: Sequence[Component], processes: int, width: int, activations: float
) -> Estimate:
    """The memory of one of `processes`. width: bytes of the precision, w above. activations: their bytes."""
    states = {part.name: _states(strategy, part, processes, width) for part in components}
    host = 0.0
    for parts in states.values():
        moved = ["gradients", "optimizer"] if strategy.offload_optimizer else []
        if strategy.offload_weights:
            moved.append("weights")
        host += sum(parts[kind] for kind in moved)
        parts |= dict.fromkeys(moved, 0.0)
    total = sum(part.num_parameters for part in components)
    trained = sum(part.num_trainable for part in components)
    buffers = _buffers(strategy, total, trained, processes, width)
    return Estimate(strategy, states, buffers, activations, host)


def _states(strategy: Strategy, part: Component, processes: int, width: int) -> dict[str, float]:
    weights, trained = part.num_parameters, part.num_trainable
    if strategy.stage == 0:
        held = FP32 * trained + width * (weights - trained)
        return dict(zip(STATES, (held, FP32 * trained, MOMENTS * trained)))
    shared = trained / processes
    optimizer = (FP32 + MOMENTS) * shared
    gradients = (FP32 if strategy.sums_in_fp32 else width) * (shared if strategy.stage >= 2 else trained)
    return dict(zip(STATES, (width * weights / (processes if strategy.stage == 3 else 1), gradients, optimizer)))


def _buffers(strategy: Strategy, total: int, trained: int, processes: int, width: int) -> float:
    if strategy.stage == 0:
        return (FP32 * trained if processes > 1 else 0) + (width * trained if width < FP32 else 0)
    if strategy.stage == 1 and strategy.sums_in_fp32 and width < FP32:
        return (FP32 + width) * trained
    buckets = width * strategy.bucket * (2 if strategy.overlap and strategy.stage < 3 else 1)
    step = 0.0 if strategy.offload_optimizer else FP32 * trained / processes
    gathered = width * min(total, strategy.max_live) * (1 - 1 / processes) if strategy.stage == 3 else 0.0
    return buckets + step + gathered
