"""The words in which an error says how an unfinished run goes on: keys with values to copy. Imports no torch.

What the keys change is free when a run goes on, see llava/train/folders/same_run.py: each step keeps its samples.
"""

import json
import shlex
from collections.abc import Collection, Sequence
from pathlib import Path

import yaml

from llava.train.family import rules_of
from llava.train.recipe.schema import Recipe

LISTED = 20  # ids that a message lists; more stand in a file
SKIP_ALL = "--data.on_bad_sample skip"


def skip_option(ids: Collection[str], recipe: Recipe) -> str:
    """`--data.skip_ids '["a","b"]'`: what the recipe skips already, and `ids`."""
    listed = json.dumps(_all_skipped(ids, recipe), ensure_ascii=False, separators=(",", ":"))
    return f"--data.skip_ids {shlex.quote(listed)}"


def _all_skipped(ids: Collection[str], recipe: Recipe) -> list[str]:
    return list(dict.fromkeys([*(recipe.data.skip_ids or ()), *ids]))


def past_unusable(ids: Sequence[str], recipe: Recipe) -> str:
    """A last line for a list of samples that cannot be used, found before training. ids: theirs."""
    line = f"\nMend them, or pass {SKIP_ALL} to leave them out, also of a run that is unfinished"
    return f"{line}; or {skip_option(ids, recipe)} for these alone" if 0 < len(ids) <= LISTED else line


def past_bad_samples(faults: Sequence[str], ids: Sequence[str], recipe: Recipe, last: Path | None) -> str:
    """What ended training, and the ways on. ids: of the samples; none where a data file is at fault."""
    fault, begin = "\n".join(dict.fromkeys(faults)), f", from {last}" if last else ""
    if not ids:
        return f"{fault}; mend it and start again{begin}"
    return f"{fault}; mend it, or go on with {SKIP_ALL}{begin}, or leave out this alone: {skip_option(ids, recipe)}"


def past_non_finite(ids: Sequence[str], recipe: Recipe, file: Path) -> str:
    """A line behind what was not finite. ids: of the samples to blame; file: is written where they are many."""
    if not ids:
        return ""
    if len(ids) <= LISTED:
        return f"\nTo go on without these samples: {skip_option(ids, recipe)}"
    skipped = _all_skipped(ids, recipe)
    try:
        file.write_text(yaml.safe_dump({"data": {"skip_ids": skipped}}, allow_unicode=True), encoding="utf-8")
    except OSError as error:
        return f"\nThe ids of all {len(ids)} samples could not be written to {file}: {error.strerror}"
    return (
        f"\nTo go on without these {len(ids)} samples: --override {shlex.quote(str(file))} (their ids, data.skip_ids)"
    )


def past_out_of_memory(what: str, ids: Sequence[str], recipe: Recipe, processes: int, last: Path | None) -> str:
    """What went wrong on a device, and which keys need less of its memory. ids: of the micro-batch; may be none."""
    optim, run = recipe.optim, recipe.run
    sizes = (size for size in range(optim.batch_size // 2, 0, -1) if optim.batch_size % size == 0)
    smaller = [f"--optim.batch_size {size}" for size in sizes if not optim.global_batch_size % (size * processes)][:1]
    if "optim.batch_size" not in rules_of(recipe).free_keys(recipe):
        smaller = []  # the run could not go on with another
    ways = [*smaller, *([] if run.gradient_checkpointing is True else ["--run.gradient_checkpointing true"])]
    if run.deepspeed is not None:
        ways.append("a --run.deepspeed file with offload, or of a higher ZeRO stage with --run.reshape true")
    if 0 < len(ids) <= LISTED:
        ways.append(f"without these samples, {skip_option(ids, recipe)}")
    begin = f" from {last}" if last else ""
    return f"{what}\nTo go on{begin} (steps keep their samples), one of:" + "".join(f"\n  {way}" for way in ways)
