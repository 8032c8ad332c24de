"""The processes of a run, and what connects them."""

import datetime
import os

import torch
from torch import distributed

from llava.errors import LlavaError
from llava.train.recipe.schema import Recipe


def rank() -> int:
    """This process's number in the run, known before the process group exists; 0 prints and writes."""
    return int(os.environ.get("RANK", 0))


def start_process_group(recipe: Recipe) -> None:
    """Connects the ranks where transformers would not: under DeepSpeed on a CPU.

    Without this ZeRO-3 sees a world of one process, and the timeout is gloo's half hour.
    """
    if recipe.run.deepspeed is None:
        return
    if "RANK" not in os.environ:
        raise LlavaError("run.deepspeed needs torchrun: use scripts/train/stage*.sh, or pass --run.deepspeed none")
    if torch.cuda.is_available():
        return
    import deepspeed
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # a compilation of 95 s that brings nothing here
    timeout = datetime.timedelta(seconds=recipe.run.collective_timeout)
    deepspeed.init_distributed(dist_backend="gloo", timeout=timeout, verbose=False)


def leave_process_group() -> None:
    """Ends the ranks' connections; a process that exits without can abort in gloo's threads."""
    if distributed.is_initialized():
        distributed.destroy_process_group()
