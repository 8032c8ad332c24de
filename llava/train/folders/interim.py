"""The folder of a stage's intermediate checkpoints: which of them are complete, and whether a run may go on from one.

They stand beside the stage's output, in OUTPUT.checkpoints/checkpoint-STEP. Each is written under another name, gets a
mark that lists its files and their sizes, and is renamed: a process may be killed anywhere, and what bears the name and
a mark that holds is whole. The folder is deleted once the stage's own checkpoint stands. Imports no torch.
"""

import json
import os
import shutil
from pathlib import Path

from llava.errors import LlavaError
from llava.files import follow_umask, sync_files
from llava.train.recipe.dotted import flatten, shown
from llava.train.recipe.schema import Recipe, RunRecipe

MARK = "complete.json"
PREFIX = "checkpoint-"
# Keys that a run may change when it goes on: they decide where and how it runs, not what it learns.
FREE_KEYS = (
    "model.sizes",
    "data.mixture",  # its content is compared, see content_digest
    "data.image_folder",
    "data.outside_paths",
    "data.workers",
    "data.on_bad_sample",  # a sample that is skipped has its place in the order all the same
    "data.expected_samples",
    "data.expected_image",
    "data.expected_text_tokens",
    "eval.data",
    "eval.image_folder",
    "eval.steps",
    "eval.at_start",
    "eval.batch_size",
    "eval.answers",
    "eval.max_new_tokens",
    "run.output_dir",
    "run.overwrite",
    "run.gradient_checkpointing",
    "run.compile",
    "run.deterministic",
    "run.logging_steps",
    "run.report_to",
    "run.startup_timeout",
    "run.collective_timeout",
    "run.save_steps",
    "run.save_minutes",
    "run.keep_last",
    "run.interim_weights",
    "run.rehearsal",
    "run.resume",
    "run.reshape",
)

WAY_ON = "\nMend them, or pass --data.on_bad_sample skip to leave them out, also of a run that is unfinished"


def checkpoints_folder(output_dir: str) -> Path:
    """Where the intermediate checkpoints of a stage stand until it is finished."""
    return Path(f"{output_dir}.checkpoints")


def start_checkpoint(output_dir: str) -> Path:
    """An empty folder to write in, see finish_checkpoint."""
    folder = checkpoints_folder(output_dir) / "writing"
    shutil.rmtree(folder, ignore_errors=True)
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
        mark = json.loads((checkpoint / MARK).read_text())
        whole = all((checkpoint / name).stat().st_size == size for name, size in mark["files"].items())
    except (OSError, ValueError, RecursionError):
        return None
    return mark if whole else None


def complete_checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints in `folder`, the last one first."""
    numbered = [(path.name.removeprefix(PREFIX), path) for path in folder.glob(f"{PREFIX}*")]
    steps = sorted(((int(step), path) for step, path in numbered if step.isdecimal()), reverse=True)
    return [path for _, path in steps if read_mark(path) is not None]


def last_checkpoint(run: RunRecipe) -> Path | None:
    """The checkpoint that the stage goes on from; None when it starts anew."""
    if not run.resume:
        return None
    return next(iter(complete_checkpoints(checkpoints_folder(run.output_dir))), None)


def check_resume(recipe: Recipe, processes: int) -> None:
    """Compares a recipe, and the number of processes, with those of the unfinished run that it would go on from.

    Raises:
        LlavaError: where they do not fit; names each key with both values.
    """
    checkpoint = last_checkpoint(recipe.run)
    mark = checkpoint and read_mark(checkpoint)
    if mark is None:
        return
    if "totals" not in mark:
        raise LlavaError(
            f"{checkpoint}: was written by an older version of this code. Go on with that version, or pass "
            "--run.resume false to delete the checkpoints and start anew"
        )
    now = _comparable(recipe)
    changed = [(key, old, now[key]) for key, old in mark["recipe"].items() if key in now and now[key] != old]
    if changed:
        listed = ", ".join(f"{key} was {shown(old)} and is {shown(new)}" for key, old, new in changed)
        raise LlavaError(
            f"{checkpoint}: the unfinished run had another recipe: {listed}. Give the recipe it had, "
            "or pass --run.resume false to delete its checkpoints and start anew"
        )
    if mark["processes"] != processes and not recipe.run.reshape:
        raise LlavaError(
            f"{checkpoint}: was written by {mark['processes']} processes and {processes} are to go on. Start "
            f"{mark['processes']}, or pass --run.reshape true: the same order of samples, other draws of noise"
        )


def _comparable(recipe: Recipe) -> dict:
    """Every key that must not change, with its value as JSON gives it back."""
    keys = flatten(json.loads(json.dumps(recipe.to_dict())))
    return {key: value for key, value in keys.items() if key not in FREE_KEYS}


def resume_facts(recipe: Recipe, processes: int, data: str) -> dict:
    """What a checkpoint notes of its run, for check_resume and check_data_unchanged."""
    return {"recipe": _comparable(recipe), "processes": processes, "data": data}


def check_data_unchanged(checkpoint: Path, digest: str) -> None:
    """Compares the data's digest with what `checkpoint` noted.

    Raises:
        LlavaError: when it was trained on other data: the order of training would not be its own.
    """
    trained_on = read_mark(checkpoint)["data"]
    if trained_on != digest:
        raise LlavaError(
            f"{checkpoint}: the data has changed since: its hash was {trained_on[:12]} and is {digest[:12]}. "
            "Restore it, or pass --run.resume false to delete the checkpoints and start anew"
        )
