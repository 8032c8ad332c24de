"""What a step does on a GPU: seconds, memory, how long the GPU works, and how often the host waits for it."""

import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

GIB = 2**30
FEWEST, MOST = 2, 20  # steps that are timed
SYNCHRONIZING = "synchronizing CUDA operation"  # in the warning of torch.cuda.set_sync_debug_mode
SITES = 12  # places in the code that are told at most


@dataclass(frozen=True)
class Waits:
    """Device-to-host waits, and blocking copies to the device, of one step. at: how many at FILE:LINE."""

    forward: int
    backward: int
    at: dict[str, int]


def synchronize(device: torch.device) -> None:
    """Waits until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(step: Callable[[], object], device: torch.device, patience: float) -> float:
    """Of one step, of several that follow each other without a wait between them. patience: seconds for all of them.

    The first step, which also loads kernels, is not counted.
    """
    step()
    synchronize(device)
    single = _timed(step, device, 1)
    return _timed(step, device, max(FEWEST, min(MOST, int(patience / max(single, 1e-6)))))


def _timed(step: Callable[[], object], device: torch.device, count: int) -> float:
    started = time.perf_counter()
    for _ in range(count):
        step()
    synchronize(device)
    return (time.perf_counter() - started) / count


def start_memory(device: torch.device) -> None:
    """Forgets the most that was held so far."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)


def memory_of(device: torch.device) -> dict[str, float]:
    """GiB, since start_memory: the most that tensors took, and that the allocator reserved for them."""
    if device.type != "cuda":
        return {}
    peak, reserved = torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device)
    return {"memory_gib": peak / GIB, "reserved_gib": reserved / GIB}


def work_of(step: Callable[[], object], device: torch.device) -> tuple[float, int] | None:
    """Seconds in which the GPU works in one step, and the kernels and copies that it runs; None where it is not seen.

    Measured by the profiler, which slows the host down and not the kernels: to be compared with seconds without it.
    """
    if device.type != "cuda":
        return None
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        step()
        synchronize(device)
    events = [
        (event.time_range.start, event.time_range.end)
        for event in profiler.events()
        if event.device_type == DeviceType.CUDA and not event.is_user_annotation
    ]
    return (covered(events) / 1e6, len(events)) if events else None


def covered(intervals: Iterable[tuple[float, float]]) -> float:
    """The length of what the intervals cover together."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(intervals):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def waits_of(forward: Callable[[], torch.Tensor], device: torch.device) -> Waits | None:
    """Of a loss and its backward pass; None on a device that the host does not wait for.

    torch counts what it knows of: copies to the host and blocking ones to the device, nonzero, item, boolean indices.
    """
    if device.type != "cuda":
        return None
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            loss = forward()
            in_forward = len(_sites(told))
            loss.backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    sites = _sites(told)
    return Waits(in_forward, len(sites) - in_forward, dict(Counter(sites).most_common(SITES)))


def _sites(told: list[warnings.WarningMessage]) -> list[str]:
    """FILE:LINE of each wait, the file with its last two folders."""
    return [
        f"{'/'.join(Path(warning.filename).parts[-3:])}:{warning.lineno}"
        for warning in told
        if SYNCHRONIZING in str(warning.message)
    ]
