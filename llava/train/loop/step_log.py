"""What a logged step tells beside loss and rates: speed, work, padding, waiting for data, memory, use of the GPUs.

All numbers are those of all ranks together, since the step logged before; the ranks exchange them once per logged step.
"""

import resource
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from transformers import TrainingArguments

# Dense bfloat16 TFLOP/s from the makers' data sheets, by words of torch.cuda.get_device_name.
PEAK_BF16_TFLOPS = {
    "A10": 125,
    "A10G": 70,
    "A100": 312,
    "A40": 150,
    "A6000": 155,
    "A800": 312,
    "B200": 2250,
    "GH200": 989,
    "H20": 148,
    "H100": 989,
    "H100 NVL": 835,
    "H100 PCIe": 756,
    "H200": 989,
    "H800": 989,
    "L4": 121,
    "L40": 181,
    "L40S": 362,
    "RTX 3090": 71,
    "RTX 4090": 165,
}


def peak_bf16_tflops(device_name: str) -> float | None:
    """The peak of the device that shares most words with its entry; None for one that is unknown or a MIG slice."""
    words = set(device_name.replace("-", " ").split())
    if "MIG" in words:
        return None
    names = [name for name in PEAK_BF16_TFLOPS if set(name.split()) <= words]
    return PEAK_BF16_TFLOPS[max(names, key=lambda name: len(name.split()))] if names else None


def trained_peak_tflops(arguments: TrainingArguments) -> float | None:
    """The peak that a run of these arguments could reach on each device; None where it has none to compare with."""
    if not arguments.bf16 or arguments.device.type != "cuda":
        return None
    return peak_bf16_tflops(torch.cuda.get_device_name(arguments.device))


def peak_memory_gib(device: torch.device) -> float:
    """The most that this process has held so far: of the GPU's memory, or on a CPU its resident set."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


class StepLog:
    """Counts one rank's micro-batches and, when a step is logged, adds up the ranks'.

    Args:
        accelerator: what connects the ranks.
        cost: of training; operations of what Cost takes, in its order.
        count: of a micro-batch, see StageData.
        peak_tflops: of each device, as the training's precision has it; None leaves out `mfu`.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        cost: Callable[..., Any],
        count: Callable[[dict], torch.Tensor],
        peak_tflops: float | None,
    ):
        self.accelerator = accelerator
        self.cost = cost
        self.count = count
        self.peak_tflops = peak_tflops
        self._started = None
        self._reset()

    def _reset(self) -> None:
        self._counts = torch.zeros(10, dtype=torch.int64)
        self._waited = 0.0

    def counted(self, batches: Iterable[dict]) -> Iterator[dict]:
        """The same batches, each counted, and the time until it was there."""
        batches = iter(batches)
        while True:
            started = time.perf_counter()
            if self._started is None:
                self._started = started
            try:
                batch = next(batches)
            except StopIteration:
                return
            self._waited += time.perf_counter() - started
            self._counts += self.count(batch)
            yield batch

    @contextmanager
    def left_out(self) -> Iterator[None]:
        """What happens inside takes no time of the steps."""
        started = time.perf_counter()
        yield
        if self._started is not None:
            self._started += time.perf_counter() - started

    def read(self) -> dict[str, float]:
        """What happened since the last call, over all ranks; every rank calls it.

        tokens_per_second: without padding. supervised_tokens, crops: how many. padding: its share of the positions.
        data_wait: share of the time in which the rank that waited longest had no batch; the others wait for it.
        peak_memory_gib: of the rank that holds most. mfu: model FLOPs utilisation, forward and backward without what
        checkpointing repeats, of the devices' bfloat16 peak.
        """
        seconds = time.perf_counter() - self._started
        memory = peak_memory_gib(self.accelerator.device)
        of_rank = torch.tensor([self._waited / seconds, memory, seconds], dtype=torch.float32)
        device = self.accelerator.device
        counts = self.accelerator.gather(self._counts.to(device)[None]).sum(0).tolist()
        data_wait, memory, seconds = self.accelerator.gather(of_rank.to(device)[None]).amax(0).tolist()
        tokens, token_pairs, positions, supervised, crops, *visual = counts
        logs = {
            "tokens_per_second": tokens / seconds,
            "supervised_tokens": supervised,
            "crops": crops,
            "padding": 1 - tokens / positions,
            "data_wait": data_wait,
            "peak_memory_gib": memory,
        }
        if self.peak_tflops is not None:
            peak = self.peak_tflops * 1e12 * self.accelerator.num_processes
            logs["mfu"] = self.cost(crops, tokens, supervised, token_pairs, *visual) / seconds / peak
        self._started = time.perf_counter()
        self._reset()
        return logs
