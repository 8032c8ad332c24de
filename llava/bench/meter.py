"""Seconds and peak memory of what a device is given to do, and the interval of a median."""

import ctypes
import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

MIB = 2**20
CONFIDENCE = 0.95


def measure(action: Callable[[], Any], device: torch.device) -> tuple[float, float | None]:
    """Seconds of `action`, and the MiB it held at most beside what was there before.

    On a CPU they are seconds of processor time, all threads together, so that other processes' work does not count.
    Memory is on a GPU what the allocator handed out; on a CPU the growth of the resident set, which Linux alone can
    tell: elsewhere None.
    """
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    before = _start_memory(device)
    started = clock()
    action()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    seconds = clock() - started
    peak = _peak_memory(device)
    return seconds, None if before is None or peak is None else (peak - before) / MIB


def measure_step(
    model: torch.nn.Module, loss: Callable[[Any, dict], torch.Tensor], batch: dict
) -> tuple[float, float | None]:
    """measure() of loss(model, batch) and its backward pass. Gradients are part of the memory, and gone afterwards."""
    measured = measure(lambda: loss(model, batch).backward(), next(model.parameters()).device)
    model.zero_grad()
    return measured


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """The order statistics between which the median lies with CONFIDENCE, whatever the distribution.

    Of fewer than six values that is their range, which says less.
    """
    ordered, count = sorted(values), len(values)
    left_out, tail = 0, 0.5**count
    while tail + math.comb(count, left_out + 1) * 0.5**count <= (1 - CONFIDENCE) / 2:
        left_out += 1
        tail += math.comb(count, left_out) * 0.5**count
    return ordered[left_out], ordered[count - 1 - left_out]


def _start_memory(device: torch.device) -> int | None:
    """Bytes in use, after what counts the peak was set back to them."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    if sys.platform != "linux":
        return None
    ctypes.CDLL(None).malloc_trim(0)  # what was freed goes back to the system, so that it is counted when used again
    Path("/proc/self/clear_refs").write_text("5")  # see proc(5): the peak of the resident set is now its size
    return _status("VmRSS")


def _peak_memory(device: torch.device) -> int | None:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return _status("VmHWM") if sys.platform == "linux" else None


def _status(field: str) -> int:
    """Bytes of a field of this process's status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))
