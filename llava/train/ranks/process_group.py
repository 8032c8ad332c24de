"""The processes of a run, and what connects them."""

import datetime
import os
import platform
from collections.abc import Callable
from typing import NoReturn, TypeVar

import torch
from torch import distributed

from llava.errors import LlavaError
from llava.train.ranks.waiting import Meeting, part
from llava.train.ranks.watch import end_watch
from llava.train.recipe.running import RunRecipe

Value = TypeVar("Value")
_LEFT: list[distributed.ProcessGroup] = []  # see leave_process_group


def rank() -> int:
    """This process's number in the run, known before the process group exists; 0 prints and writes."""
    return int(os.environ.get("RANK", 0))


def start_process_group(run: RunRecipe) -> None:
    """Connects the ranks where transformers would not: under DeepSpeed on a CPU.

    Without this ZeRO-3 sees a world of one process, and the timeout is gloo's half hour.

    Raises:
        LlavaError: for DeepSpeed without torchrun.
    """
    if run.deepspeed is None:
        return
    if "RANK" not in os.environ:
        raise LlavaError("run.deepspeed needs torchrun: use scripts/train/stage*.sh, or pass --run.deepspeed none")
    if torch.cuda.is_available():
        return
    # As DeepSpeed's launcher says it, in torchrun's words; else ZeRO-3 starts numactl at every reduction, to count.
    os.environ.setdefault("LOCAL_SIZE", os.environ.get("LOCAL_WORLD_SIZE", "1"))
    import deepspeed
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # a compilation of 95 s that brings nothing here
    timeout = datetime.timedelta(seconds=run.collective_timeout)
    deepspeed.init_distributed(dist_backend="gloo", timeout=timeout, verbose=False)


def leave_process_group() -> None:
    """Ends this process's part in the run, and in the group, which ends itself with the process.

    A group that is dropped joins its threads, and one of them may still need Python's lock, to drop the tensors of a
    last collective. DDP's reducer drops its group with that lock held: where nobody else holds the group, both wait for
    ever.
    """
    end_watch()
    if distributed.is_initialized():
        _LEFT.append(distributed.group.WORLD)
        distributed.destroy_process_group()


def on_first_rank(function: Callable[[], Value], seconds: int) -> Value:
    """Calls `function` on rank 0 alone and returns what it returned there, on every rank; every rank calls this.

    seconds: how long the others wait for it. It is sent when it is there: the group's own timeout does not count.

    Raises:
        LlavaError: on rank 0, the one that `function` raised; see `end_all` for the others.
    """
    value, error, meeting = None, None, Meeting(seconds)
    if rank() == 0:
        try:
            value = function()
        except LlavaError as raised:
            error = raised
        meeting.tell("done")
    meeting.wait("done")
    sent = [value, error is not None]
    if distributed.is_initialized():
        distributed.broadcast_object_list(sent)
    value, failed = sent
    if failed:
        end_all(error)
    return value


def first_on_each_host(function: Callable[[], Value], seconds: int) -> Value:
    """What function() returns, called on every rank: on rank 0, then on the first of each host, then on the others.

    So what it makes is made once where hosts share a disk, and else once on each. Every rank calls this, and leaves it
    when all have. seconds: how long a rank waits for others.

    Raises:
        LlavaError: what it raised, on the first rank that it failed on; see `end_all` for the others.
    """
    value, error, meeting = None, None, Meeting(seconds)
    host = f"host {platform.node()} {os.environ.get('GROUP_RANK', 0)}"
    if rank() > 0:
        meeting.wait("first", *([host] if int(os.environ.get("LOCAL_RANK", 0)) > 0 else []))
    try:
        value = function()
    except LlavaError as raised:
        error = raised
    if rank() == 0:
        meeting.tell("first")
    meeting.tell(host)
    ends = meeting.come("whole" if error is None else "failed")
    if "failed" in ends:
        part()
        end_all(error, ends.index("failed"))
    return value


def end_all(error: LlavaError | None, teller: int = 0) -> NoReturn:
    """Ends the run for an `error` that every rank knows of; every rank calls it.

    Raises:
        LlavaError: `error`, on the rank `teller`, which so tells it.
        SystemExit: on the others, with status 2.
    """
    leave_process_group()
    if rank() != teller:
        raise SystemExit(2) from None
    raise error


def gathered(items: list) -> list:
    """The items of all ranks on every rank, one rank's after the other's; every rank calls it."""
    if not distributed.is_initialized():
        return list(items)
    of_ranks = [None] * distributed.get_world_size()
    distributed.all_gather_object(of_ranks, items)
    return [item for of_rank in of_ranks for item in of_rank]
