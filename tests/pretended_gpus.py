"""Two GPUs that are not there, for every process that imports this, unless its environment hides them.

What then takes one for real, beyond counting, ends with an error that says so.
"""

import os

import torch

GPUS = 2
_start_cuda = torch.cuda._lazy_init


def _are_visible() -> bool:
    return os.environ.get("CUDA_VISIBLE_DEVICES") != ""


def _start_no_cuda() -> None:
    if _are_visible():
        raise RuntimeError("a pretended GPU was used")
    _start_cuda()


torch.cuda.is_available = _are_visible
torch.cuda.device_count = lambda: GPUS if _are_visible() else 0
torch.cuda._lazy_init = _start_no_cuda
