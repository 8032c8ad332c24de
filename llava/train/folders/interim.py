"""The folder of a stage's intermediate checkpoints: which of them are complete, and what becomes of them.

They stand beside the stage's output, in OUTPUT.checkpoints/checkpoint-STEP. Each is written under another name, gets a
mark that lists its files and their sizes, and is renamed: a process may be killed anywhere, and what bears the name and
a mark that holds is whole. The folder is deleted once the stage's own checkpoint stands. Imports no torch.
"""

import json
import os
import platform
import shutil
from collections.abc import Callable
from itertools import count
from pathlib import Path
from time import monotonic, sleep

from llava.checkpoint.folder import STAGE_CHECKPOINTS
from llava.errors import LlavaError
from llava.files import follow_umask, sync_files
from llava.text_files import read_json
from llava.train.recipe.running import RunRecipe

MARK = "complete.json"
PREFIX = "checkpoint-"
COSTS = "costs.npy"  # of every sample, which decide the order, as the run's first start saw them
STALE = 60  # seconds that a network disk may show a folder as it was; Linux's NFS client keeps a listing as long
LOOK = 1  # seconds between looks at it


def checkpoints_folder(output_dir: str) -> Path:
    """Where the intermediate checkpoints of a stage stand until it is finished."""
    return Path(f"{output_dir}{STAGE_CHECKPOINTS}")


def clear_leftovers(output_dir: str) -> Path:
    """Removes what a process wrote that was killed while it wrote a checkpoint; returns the folder to write in."""
    folder = checkpoints_folder(output_dir) / "writing"
    shutil.rmtree(folder, ignore_errors=True)
    return folder


def start_checkpoint(output_dir: str) -> Path:
    """An empty folder to write in, see finish_checkpoint."""
    folder = clear_leftovers(output_dir)
    folder.mkdir(parents=True)
    return folder


def finish_checkpoint(folder: Path, facts: dict, keep_last: int) -> Path:
    """Marks the written `folder`/checkpoint-STEP complete and puts it in place; then all but the last complete ones go.

    facts: what check_resume compares, {"step", "recipe", "processes", "data", ...}. Raises OSError, and then nothing
    that stood before is touched.
    """
    written = folder / f"{PREFIX}{facts['step']}"
    follow_umask(written)
    sizes = sync_files(written)  # a machine that loses power must not keep the mark alone
    with (written / MARK).open("w") as file:
        json.dump({**facts, "files": sizes}, file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    target = folder.parent / written.name
    shutil.rmtree(target, ignore_errors=True)  # half of one, or this could not be its step again
    written.rename(target)
    kept = complete_checkpoints(folder.parent)[:keep_last]
    for other in set(folder.parent.glob(f"{PREFIX}*")) - set(kept):
        (other / MARK).unlink(missing_ok=True)  # first, so that what is half deleted is not complete
        shutil.rmtree(other, ignore_errors=True)
    return target


def read_mark(checkpoint: Path) -> dict | None:
    """What finish_checkpoint noted; None where the mark is missing or a file is missing or of another size."""
    try:
        mark = read_json(checkpoint / MARK)
        whole = all((checkpoint / name).stat().st_size == size for name, size in mark["files"].items())
    except (OSError, LlavaError):
        return None
    return mark if whole else None


def complete_checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints in `folder`, the last one first."""
    return [path for path in _by_step(folder) if read_mark(path) is not None]


def step_of(checkpoint: Path) -> int:
    """The step after which it was saved."""
    return int(checkpoint.name.removeprefix(PREFIX))


def _by_step(folder: Path) -> list[Path]:
    """What is named as a checkpoint in `folder`, the last one first."""
    named = (path for path in folder.glob(f"{PREFIX}*") if path.name.removeprefix(PREFIX).isdecimal())
    return sorted(named, key=step_of, reverse=True)


def last_checkpoint(run: RunRecipe) -> Path | None:
    """The checkpoint that the stage goes on from; None when it starts anew.

    Where the last one is not whole, it is waited for: what another machine wrote to a network disk is seen later.
    """
    if run.resume is not True:
        return None
    folder = checkpoints_folder(run.output_dir)
    wait_for(lambda: all(read_mark(path) is not None for path in _by_step(folder)[:1]))
    return next(iter(complete_checkpoints(folder)), None)


def check_seen(checkpoint: Path | None) -> None:
    """Raises LlavaError where this host does not see the whole checkpoint that its run goes on from."""
    if checkpoint is not None and not wait_for(lambda: read_mark(checkpoint) is not None):
        raise LlavaError(
            f"{platform.node()} does not see {checkpoint}, or not whole; is it on a disk that all hosts share?"
        )


def wait_for(holds: Callable[[], bool]) -> bool:
    """Whether something holds of a disk that all machines share, now or within STALE seconds."""
    end = monotonic() + STALE
    while not (held := holds()) and monotonic() < end:
        sleep(LOOK)
    return held


def start_anew(run: RunRecipe) -> None:
    """Makes place for the checkpoints of a stage that does not go on from any.

    `run.resume` delete deletes what stands there; false sets it aside, as OUTPUT.checkpoints.N, and prints so.
    """
    folder = checkpoints_folder(run.output_dir)
    if run.resume == "delete" or not any(folder.glob(f"{PREFIX}*")):
        shutil.rmtree(folder, ignore_errors=True)
        return
    numbers = (number for number in count(1) if not Path(f"{folder}.{number}").exists())
    aside = folder.rename(f"{folder}.{next(numbers)}")
    print(f"the unfinished run's checkpoints were set aside in {aside}", flush=True)
