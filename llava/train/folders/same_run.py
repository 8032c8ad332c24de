"""Whether a run may go on from a checkpoint: which keys may have changed since, and what a checkpoint notes of its run.

What decides what is learned must stay: keys that are not free, the data, the costs that decide its order. What decides
where and how it runs is free. DeepSpeed's states are cut in pieces, as the number of processes and the ZeRO stage have
it; where these change they are joined first, which `run.reshape` allows. Imports no torch.
"""

import json
from pathlib import Path

from llava.errors import LlavaError
from llava.text_files import read_json
from llava.train.family import StageRecipe, rules_of
from llava.train.folders.interim import PREFIX, checkpoints_folder, last_checkpoint, read_mark
from llava.train.recipe.dotted import flatten, shown

# Keys of a recipe of the MLLM that may change.
FREE_KEYS = (
    "model.sizes",
    "model.attention",
    "data.mixture",  # its content is compared, see content_digest
    "data.image_folder",
    "data.outside_paths",
    "data.workers",
    "data.on_bad_sample",  # a sample that is skipped has its place in the order all the same
    "data.skip_ids",  # likewise
    "data.expected_samples",
    "data.expected_image",
    "data.expected_text_tokens",
    "optim.batch_size",  # accumulation keeps optim.global_batch_size, and a step its samples, see epoch_order
    "eval.data",
    "eval.image_folder",
    "eval.steps",
    "eval.at_start",
    "eval.batch_size",
    "eval.answers",
    "eval.max_new_tokens",
    "run.output_dir",
    "run.overwrite",
    "run.deepspeed",  # how it cuts states is compared, see _cut
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
# Keys of DeepSpeed's zero_optimization that neither change which states there are nor how they are cut.
UNCUT = {
    "allgather_bucket_size",
    "allgather_partitions",
    "contiguous_gradients",
    "offload_optimizer",
    "offload_param",
    "overlap_comm",
    "reduce_bucket_size",
    "reduce_scatter",
    "stage3_gather_16bit_weights_on_model_save",
    "stage3_max_live_parameters",
    "stage3_max_reuse_distance",
    "stage3_param_persistence_threshold",
    "stage3_prefetch_bucket_size",
}
ANEW = "start anew: --run.resume false sets its checkpoints aside, --run.resume delete deletes them"


def check_resume(recipe: StageRecipe, processes: int) -> None:
    """Compares a recipe, and the number of processes, with those of the unfinished run that it would go on from.

    Raises:
        LlavaError: where they do not fit; names each key with both values, and what can be done.
    """
    checkpoint = last_checkpoint(recipe.run)
    if checkpoint is None:
        _check_nothing_to_lose(recipe)
        return
    mark = read_mark(checkpoint)
    if "totals" not in mark:
        raise LlavaError(
            f"{checkpoint}: was written by an older version of this code. Go on with that version, or {ANEW}"
        )
    now = _comparable(recipe)
    changed = [(key, old, now[key]) for key, old in mark["recipe"].items() if key in now and now[key] != old]
    if changed:
        listed = ", ".join(f"{key} was {shown(old)} and is {shown(new)}" for key, old, new in changed)
        raise LlavaError(
            f"{checkpoint}: the unfinished run had another recipe: {listed}. Give the recipe it had, or {ANEW}"
        )
    if mark["processes"] != processes and not recipe.run.reshape:
        raise LlavaError(
            f"{checkpoint}: was written by {mark['processes']} processes and {processes} are to go on. Start "
            f"{mark['processes']}, or pass --run.reshape true: the same order of samples, other draws of noise"
        )
    _check_cut(checkpoint, mark, recipe)


def _check_nothing_to_lose(recipe: StageRecipe) -> None:
    """Raises LlavaError where checkpoints stand of which none is whole: a start that goes on must not pass them by."""
    folder = checkpoints_folder(recipe.run.output_dir)
    broken = sorted(path.name for path in folder.glob(f"{PREFIX}*"))
    if recipe.run.resume is True and broken:
        raise LlavaError(
            f"{folder}: of the unfinished run's checkpoints none is whole ({', '.join(broken)}): files that "
            f"complete.json lists are missing or cut off. Restore them, or {ANEW}"
        )


def _comparable(recipe: StageRecipe) -> dict:
    """Every key that must not change, with its value as JSON gives it back."""
    keys, free = flatten(json.loads(json.dumps(recipe.to_dict()))), rules_of(recipe).free_keys(recipe)
    return {key: value for key, value in keys.items() if key not in free}


def resume_facts(recipe: StageRecipe, processes: int, data: str) -> dict:
    """What a checkpoint notes of its run, for check_resume, is_cut_anew and check_data_unchanged."""
    path = recipe.run.deepspeed
    config = None if path is None else read_json(path, by_hand=True)
    kept = {"recipe": _comparable(recipe), "processes": processes, "data": data}
    return {**kept, "deepspeed": {"file": path, "config": config}}


def _cut(config: dict | None) -> dict | None:
    """The part of a DeepSpeed file that says how states are cut; None without DeepSpeed."""
    if config is None:
        return None
    cut = {key: value for key, value in config["zero_optimization"].items() if key not in UNCUT}
    if cut["stage"] == 1:  # in bfloat16 it is another optimizer that adds up in float32
        cut["data_types"] = config.get("data_types")
    return cut


def _cuts(mark: dict, recipe: StageRecipe) -> tuple[str | None, dict | None, dict | None]:
    """The run's DeepSpeed file, how it cut states, and how the recipe's does."""
    path = recipe.run.deepspeed
    now = None if path is None else _cut(read_json(path, by_hand=True))
    if "deepspeed" in mark:
        return mark["deepspeed"]["file"], _cut(mark["deepspeed"]["config"]), now
    before = mark["recipe"]["run.deepspeed"]  # of a version that noted the path alone
    return before, now if before == path else before and _cut(read_json(before, by_hand=True)), now


def _check_cut(checkpoint: Path, mark: dict, recipe: StageRecipe) -> None:
    path, before, now = _cuts(mark, recipe)
    if before == now or (before and now and recipe.run.reshape):
        return
    was = f"{checkpoint}: run.deepspeed was {shown(path)} and is {shown(recipe.run.deepspeed)}"
    if before is None or now is None:
        raise LlavaError(f"{was}, whose states are others. Pass --run.deepspeed {shown(path)}, or {ANEW}")
    keys = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    listed = ", ".join(f"{key} was {shown(before.get(key))} and is {shown(now.get(key))}" for key in keys)
    raise LlavaError(
        f"{was}, which cuts states otherwise ({listed}). Pass --run.reshape true to join them and cut them anew, or "
        f"--run.deepspeed {path}"
    )


def is_cut_anew(mark: dict, recipe: StageRecipe, processes: int) -> bool:
    """Whether DeepSpeed's states of a checkpoint must be joined before this start can take them."""
    _, before, now = _cuts(mark, recipe)
    return now is not None and (mark["processes"] != processes or before != now)


def check_data_unchanged(checkpoint: Path, digest: str) -> None:
    """Compares the data's digest with what `checkpoint` noted.

    Raises:
        LlavaError: when it was trained on other data: the order of training would not be its own.
    """
    trained_on = read_mark(checkpoint)["data"]
    if trained_on != digest:
        raise LlavaError(
            f"{checkpoint}: the data has changed since: its hash was {trained_on[:12]} and is {digest[:12]}. "
            f"Restore it, or {ANEW}"
        )
