"""How training ends before its last step: by a signal, or by what it met; and what is told then."""

import platform
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from llava.errors import DataError, LlavaError
from llava.train.family import StageRecipe
from llava.train.folders.interim import checkpoints_folder, complete_checkpoints
from llava.train.loop.bad_samples import BadSampleError
from llava.train.loop.guard import NonFiniteError
from llava.train.loop.trainer import LlavaTrainer
from llava.train.ranks.process_group import end_all, rank
from llava.train.recipe.way_on import past_bad_samples, past_non_finite, past_out_of_memory


def exit_stopped(trainer: LlavaTrainer) -> None:
    """Ends this process with the status of the signal that stopped training; rank 0 says how to go on."""
    number, last = trainer.save_and_stop.stopped_by, trainer.saver.last
    if rank() == 0:
        state, name = trainer.state, signal.Signals(number).name
        kept = f"the same command goes on from {last}" if last else "nothing was saved"
        print(f"stopped by {name} after step {state.global_step} of {state.max_steps}; {kept}", file=sys.stderr)
    raise SystemExit(128 + number)


@contextmanager
def ends_told(recipe: StageRecipe, processes: int, trainer: LlavaTrainer) -> Iterator[None]:
    """What ends the training inside is told with the keys by which the run goes on.

    Raises:
        LlavaError: on the rank that tells; see end_all. Memory that one rank lacks it tells, and ends, alone.
    """
    try:
        yield
    except NonFiniteError as error:
        _end_line()
        file = trainer.guard.folder / f"step-{error.step}-skip.yaml"
        way_on = past_non_finite(_skippable(error.ids, recipe), recipe, file) if rank() == 0 else ""
        end_all(LlavaError(f"{error}{way_on}"))
    except BadSampleError as error:
        _end_line()
        end_all(DataError(past_bad_samples(error.faults, _skippable(error.ids, recipe), recipe, trainer.saver.last)))
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        _end_line()
        ids = [origin.id for origin in trainer.guard.running if not origin.skipped]
        last = next(iter(complete_checkpoints(checkpoints_folder(recipe.run.output_dir))), None)
        raise LlavaError(
            past_out_of_memory(_lack(error, trainer), _skippable(ids, recipe), recipe, processes, last)
        ) from None


def _skippable(ids: Sequence[str], recipe: StageRecipe) -> Sequence[str]:
    """The ids of samples without which the run could go on."""
    return ids if recipe.keeps_order else []


def _end_line() -> None:
    """Ends the line that the first rank's progress bar keeps open."""
    if rank() == 0:
        print(file=sys.stderr)


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether a device, or the host, has no memory left; beside torch's own error its libraries tell it in words."""
    words = ("out of memory", "can't allocate memory")
    return isinstance(error, torch.OutOfMemoryError) or any(text in str(error) for text in words)


def _lack(error: RuntimeError, trainer: LlavaTrainer) -> str:
    """Which rank lacks memory, with which samples."""
    samples = ", ".join(map(str, trainer.guard.running)) or "no sample: between the forward passes"
    place = f"rank {rank()} on {platform.node()} is out of memory in step {trainer.state.global_step + 1}"
    return f"{place}, with {samples}: {str(error).strip().partition(chr(10))[0]}"
