"""What can be wrong with a recipe of the two towers, and with its data, before a stage starts. Imports no torch."""

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import fields
from functools import partial
from pathlib import Path

from llava.checkpoint.folder import CONFIG, NEEDED_TOKENIZER_FILES
from llava.data.pairs.mixture import PairMixture, load_pairs, read_pair_mixture
from llava.errors import DataError, LlavaError
from llava.text_files import read_json
from llava.train.family import Rules
from llava.train.folders.same_run import FREE_KEYS
from llava.train.folders.stage_folder import check_output_folder
from llava.train.ranks.environment import world_size
from llava.train.recipe.checks import (
    changed,
    check_attention_runs,
    check_deepspeed,
    check_is_folder,
    check_sizes,
    check_source,
    out_of_bounds,
    raised,
    source_faults,
    source_folders,
    zero_stage,
)
from llava.train.two_tower.recipe import TwoTowerFusionRecipe, TwoTowerRecipe, two_tower_keys
from llava.two_tower.parts import IMAGE_TOWERS, MODEL_TYPE, TEXT_TOWERS
from llava.two_tower.tasks import TASKS

SOURCES = ("text_tower", "vision_tower")  # of `model`, in place of start_from
PROCESSOR = ("preprocessor_config.json", *NEEDED_TOKENIZER_FILES)
TWO_TOWER_FREE = frozenset({"model.keep_states", "task.num_answers", "eval.split", "eval.samples", "eval.rerank"})
# Of the bridge, what a stage may have otherwise than the one before.
ANY_START = ("initializer_range", "noise", "mask_padding", "hidden_dropout_prob", "attention_probs_dropout_prob")


def faults_of(recipe: TwoTowerRecipe) -> list[str]:
    """A line for each bad combination of keys, and for each number out of its bounds."""
    run, rates, faults = recipe.run, recipe.rates, source_faults(recipe.model, SOURCES)
    if recipe.fusion.gated_fusion and recipe.fusion.bridge != "meter":
        faults.append(f"fusion.gated_fusion is METER's; fusion.bridge is {recipe.fusion.bridge}")
    for key in ("gradient_checkpointing", "compile"):
        if not isinstance(getattr(run, key), bool):
            faults.append(f"run.{key} of the two towers is true or false")
    if not any((rates.towers, rates.cross_modal, rates.heads)):
        faults.append("nothing trains: rates.towers, rates.cross_modal and rates.heads are 0")
    if recipe.task.name == "retrieval" and recipe.optim.batch_size * world_size() == 1:
        faults.append("optim.batch_size 1 on 1 process: ITC compares a pair with others, and there are none")
    if recipe.model.keep_states is not None:
        faults += [f"model.keep_states {recipe.model.keep_states} {fault}" for fault in _kept_faults(recipe)]
    if recipe.eval.split is None:
        faults += [f"eval.{name} is for nothing: eval.split is none" for name in changed(recipe.eval)]
    return faults + out_of_bounds(recipe)


def _kept_faults(recipe: TwoTowerRecipe) -> Iterator[str]:
    """Why states of towers cannot be kept."""
    if recipe.rates.towers:
        yield f"needs towers that do not change; rates.towers is {recipe.rates.towers:g}"
    if recipe.data.transform.startswith("randaug"):
        yield f"needs images that do not change; data.transform is {recipe.data.transform}"
    if recipe.model.keep_states == "all" and not recipe.fusion.mask_padding:
        yield "keeps no states at padding, which fusion.mask_padding false attends to"


def _check_partition(recipe: TwoTowerRecipe) -> None:
    if recipe.model.keep_states is not None and zero_stage(recipe.run) == 3:
        raise LlavaError(
            f"run.deepspeed {recipe.run.deepspeed}: stage 3 runs a tower on all ranks at once, which with "
            f"model.keep_states {recipe.model.keep_states} each runs when it sees something new"
        )


def checks_of(recipe: TwoTowerRecipe, dry_run: bool) -> list[Callable[[], object]]:
    """What raises LlavaError for a value that cannot be or, unless it is a dry run, for a missing file."""
    checks = [
        partial(check_sizes, recipe.model.sizes, ("text", "vision")),
        partial(check_deepspeed, recipe.run),
        partial(_check_partition, recipe),
        partial(mixtures, recipe),
    ]
    if dry_run:
        return checks
    return [
        *checks,
        partial(check_attention_runs, recipe.model.attention),
        partial(check_output_folder, recipe),
        partial(_check_files, recipe),
        partial(check_is_folder, "data.image_folder", recipe.data.image_folder),
    ]


def mixtures(recipe: TwoTowerRecipe) -> list[tuple[PairMixture, str]]:
    """What is trained on and what is evaluated: mixtures with their splits. Raises DataError for an unknown split."""
    kind = TASKS[recipe.task.name].pairs
    wanted = [(recipe.data.mixture, recipe.data.split)]
    if recipe.eval.split is not None:
        wanted.append((recipe.eval.data or recipe.data.mixture, recipe.eval.split))
    read = [(read_pair_mixture(path, kind), split) for path, split in wanted]
    for mixture, split in read:
        mixture.entries(split)
    return read


def all_files(recipe: TwoTowerRecipe) -> list[Path]:
    """The data files of the splits that are used, and the vocabulary of answers."""
    files = []
    for mixture, split in mixtures(recipe):
        files += [file for entry in mixture.entries(split) for file in entry.files]
        files += [mixture.answers] if mixture.answers is not None else []
    return list(dict.fromkeys(files))


def missing_files(recipe: TwoTowerRecipe) -> list[Path]:
    """Those of them that are not there."""
    return [file for file in all_files(recipe) if not file.is_file()]


def _check_files(recipe: TwoTowerRecipe) -> None:
    missing = missing_files(recipe)
    if missing:
        raise LlavaError(f"data.mixture {recipe.data.mixture}: {len(missing)} files missing, first {missing[0]}")


def start_faults(recipe: TwoTowerRecipe) -> list[str]:
    """What is wrong with the folders that the recipe starts from, the first fault of each."""
    return raised(
        [
            partial(_check_start_from, recipe),
            partial(check_source, recipe.model, "text_tower", TEXT_TOWERS, NEEDED_TOKENIZER_FILES),
            partial(check_source, recipe.model, "vision_tower", (*IMAGE_TOWERS, "clip"), ()),
        ]
    )


def _check_start_from(recipe: TwoTowerRecipe) -> None:
    check_source(recipe.model, "start_from", (MODEL_TYPE,), PROCESSOR)
    if recipe.model.start_from is not None:
        check_bridge(recipe)


def check_bridge(recipe: TwoTowerRecipe) -> None:
    """Raises LlavaError unless what the recipe starts from has its bridge, with weights of the same kind."""
    folder = recipe.model.start_from
    content = read_json(Path(folder) / CONFIG)
    for field in fields(TwoTowerFusionRecipe):
        saved, wanted = content.get(field.name, field.default), getattr(recipe.fusion, field.name)
        if saved != wanted and field.name not in ANY_START:
            raise LlavaError(
                f"model.start_from {folder} has {field.name} {saved}, the recipe (arm {recipe.arm}) has {wanted}"
            )


def check_data(recipe: TwoTowerRecipe) -> None:
    """Opens every data file of the splits that are used: columns, texts and answers; images are read in training.

    Raises DataError for the first that cannot be used.
    """
    for mixture, split in mixtures(recipe):
        loaded = load_pairs(mixture, split, recipe.run.seed, recipe.data.skip_ids or ())
        if split == recipe.data.split and len(loaded.store) < recipe.optim.global_batch_size:
            raise DataError(
                f"optim.global_batch_size {recipe.optim.global_batch_size}: one optimizer step takes more pairs than "
                f"there are in {mixture.file} split {split}, {len(loaded.store)}"
            )


def data_files(recipe: TwoTowerRecipe) -> Iterable[Path]:
    """The mixtures."""
    return [mixture.file for mixture, _ in mixtures(recipe)]


def free_keys(recipe: TwoTowerRecipe) -> Collection[str]:
    """What may change while a run is unfinished.

    The pairs that are compared with each other are those of a micro-batch, so that its size is part of what is learned.
    Rows that are left out change the order.
    """
    bound = {"data.skip_ids"} | ({"optim.batch_size"} if recipe.task.name == "retrieval" else set())
    return (frozenset(FREE_KEYS) | TWO_TOWER_FREE) - bound


TWO_TOWER_RULES = Rules(
    faults=faults_of,
    checks=checks_of,
    start_faults=start_faults,
    check_data=check_data,
    missing_files=missing_files,
    data_files=data_files,
    large_files=all_files,
    start_folders=lambda recipe: source_folders(recipe.model, SOURCES),
    free_keys=free_keys,
    keys=lambda recipe: two_tower_keys(),
)
