"""Whether all hosts of a run write to one disk: the first rank leaves a file there, which every host must see."""

import os
import platform
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

from llava.train.folders.interim import wait_for
from llava.train.ranks.waiting import Meeting
from llava.train.recipe.running import RunRecipe


def shared_disk_fault(run: RunRecipe, seconds: int) -> str | None:
    """Why the run's checkpoints could not be kept, the same on every rank; None where they can. Every rank calls it.

    A checkpoint has a part of each rank. A run on one host, or without checkpoints, needs no shared disk.

    Args:
        run: where it writes, and whether it keeps checkpoints.
        seconds: how long ranks wait for each other.

    Raises:
        LlavaError: when a rank is waited for in vain.
    """
    one_host = os.environ.get("LOCAL_WORLD_SIZE") == os.environ.get("WORLD_SIZE")
    if one_host or (run.save_steps is None and run.save_minutes is None):
        return None
    output, file, fault = Path(run.output_dir).absolute(), None, ""
    if int(os.environ["RANK"]) == 0:
        file = output.with_name(f".{output.name}.seen-by-all-hosts-{uuid4().hex[:8]}")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
        except OSError as error:
            fault = f"run.output_dir {run.output_dir}: {file.parent} cannot be written to: {error.strerror}"
    name, *_ = Meeting(seconds).come(file.name if file is not None and not fault else "")
    first_on_host = int(os.environ.get("LOCAL_RANK", 0)) == 0
    if name and first_on_host and not wait_for((output.parent / name).exists):
        fault = (
            f"run.output_dir {run.output_dir}: {platform.node()} does not see what rank 0 writes there: no checkpoint "
            "of the unfinished run could be kept. Name a folder on a disk that all hosts share, or train without "
            "checkpoints: --run.save_steps none --run.save_minutes none"
        )
    faults = list(filter(None, Meeting(seconds).come(fault)))
    if file is not None:
        with suppress(OSError):  # it is not there where it could not be made
            file.unlink()
    return faults[0] if faults else None
