"""Seconds and peak memory of one training step."""

import ctypes
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

MIB = 2**20


def measure_step(model: torch.nn.Module, loss: Callable, batch: dict) -> tuple[float, float | None]:
    """Seconds of loss(model, batch) and its backward pass, and the MiB it held at most beside what was there before.

    On a CPU they are seconds of processor time, all threads together, so that other processes' work does not count.
    Gradients are part of the memory. On a GPU it is what the allocator handed out; on a CPU the growth of the resident
    set, which Linux alone can tell: elsewhere None.
    """
    device = next(model.parameters()).device
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    before = _start_memory(device)
    started = clock()
    loss(model, batch).backward()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    seconds = clock() - started
    peak = _peak_memory(device)
    model.zero_grad()
    return seconds, None if before is None else (peak - before) / MIB


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
