"""Computing a layer again in the backward pass instead of keeping what is inside it.

As torch.utils.checkpoint without reentrance does it: what autograd would save is counted while the layer runs, and the
first of it that the backward pass asks for lets the layer run again, up to the last of it, with other hooks. The last
product of a layer, a third of its work, is so left out, and the layer's input needs no gradient. torch's own does more
for each saved tensor, which for layers that a GPU is done with quickly is half of the time of the pass: it compares
sizes, keeps apart backward passes of the same graph, and restores random numbers.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.autograd.graph import saved_tensors_hooks


class _StopError(Exception):
    """All that was saved is there again."""


class _Again:
    """One call of a function, and what its backward pass needs."""

    __slots__ = ("autocast", "call", "num_saved", "saved")

    def __init__(self, call: Callable[[], Any], device_type: str):
        self.call = call
        self.num_saved = 0
        self.saved: list[torch.Tensor | None] = []
        self.autocast = torch.autocast(
            device_type,
            torch.get_autocast_dtype(device_type),
            torch.is_autocast_enabled(device_type),
            torch.is_autocast_cache_enabled(),
        )

    def pack(self, tensor: torch.Tensor) -> int:
        """A number in the place of what autograd saves."""
        self.num_saved += 1
        return self.num_saved - 1

    def unpack(self, number: int) -> Any:
        """What has the number, computed again, and forgotten; a graph that is gone through twice computes it twice."""
        if not self.saved or self.saved[number] is None:
            self._run()
        tensor, self.saved[number] = self.saved[number], None
        return tensor

    def _run(self) -> None:
        self.saved = saved = []

        def keep(tensor: torch.Tensor) -> Any:
            saved.append(tensor.detach())  # without the graph of this run
            if len(saved) == self.num_saved:
                raise _StopError

        with torch.enable_grad(), self.autocast, saved_tensors_hooks(keep, keep):
            try:
                self.call()
            except _StopError:
                return
        raise RuntimeError(f"autograd saved {self.num_saved} tensors of a layer, and {len(saved)} when it ran again")


def recompute(function: Callable, *args: torch.Tensor) -> Any:
    """function(*args), of which autograd keeps the arguments alone.

    Args:
        function: computes the same each time: it draws no random numbers. Not for what torch.compile compiles.
        args: tensors, at least one.
    """
    again = _Again(lambda: function(*args), args[0].device.type)
    with saved_tensors_hooks(again.pack, again.unpack):
        return function(*args)
