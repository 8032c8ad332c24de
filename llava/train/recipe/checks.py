"""What can be wrong with a stage before it starts: combinations of keys, missing files, data. Imports no torch."""

import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from llava.bounds import LARGEST
from llava.checkpoint.folder import check_folder
from llava.data.mixture import missing_files
from llava.engine.checks import check_attention
from llava.errors import LlavaError, raise_faults
from llava.text_files import read_json
from llava.train.family import StageRecipe, rules_of
from llava.train.folders.same_run import check_resume
from llava.train.recipe.dotted import flatten, read_yaml
from llava.train.recipe.running import OptimRecipe, RunRecipe

BUILT_BY_TRAINER = ("optimizer", "scheduler")  # blocks that would replace the Trainer's, with one rate for everything
GATHER = "stage3_gather_16bit_weights_on_model_save"


def check_recipe(recipe: StageRecipe, world_size: int, dry_run: bool) -> None:
    """Raises one LlavaError that lists every bad combination and, unless `dry_run`, every missing file or folder."""
    rules = rules_of(recipe)
    faults = rules.faults(recipe) + _batches(recipe.optim, world_size)
    checks = rules.checks(recipe, dry_run)
    if not dry_run:
        faults += _packages(recipe.run) + rules.start_faults(recipe)
        checks.append(partial(check_resume, recipe, world_size))
    raise_faults(f"the recipe of stage {recipe.stage}, arm {recipe.arm},", list(dict.fromkeys(faults + raised(checks))))


def raised(checks: Iterable[Callable[[], object]]) -> list[str]:
    """The messages of the checks that raise LlavaError."""
    faults = []
    for check in checks:
        try:
            check()
        except LlavaError as error:
            faults.append(str(error))
    return faults


def check_data(recipe: StageRecipe) -> None:
    """Reads the data and looks at every image. Raises DataError with all faults."""
    rules_of(recipe).check_data(recipe)


def out_of_bounds(recipe: StageRecipe) -> list[str]:
    """A line for each number that is not within the bounds of its field."""
    values = flatten(recipe.to_dict())
    bounded = {key: field.bounds for key, field in rules_of(recipe).keys(recipe).items() if field.bounds is not None}
    judged = {key: bounds.fault(values[key]) for key, bounds in bounded.items() if values[key] is not None}
    return [f"{key} {fault}" for key, fault in judged.items() if fault is not None]


def source_faults(model: Any, names: Sequence[str]) -> list[str]:
    """What is wrong with where weights come from: `model.start_from`, or both of the folders of these two keys."""
    sources = [name for name in names if getattr(model, name) is not None]
    if model.start_from is not None and sources:
        return [f"model.start_from and model.{sources[0]} exclude each other"]
    if model.start_from is None and len(sources) < len(names):
        return [f"the model needs model.start_from, or {' and '.join(f'model.{name}' for name in names)}"]
    return []


def source_folders(model: Any, names: Sequence[str]) -> list[Path]:
    """Those of `model.start_from` and of these keys that are given."""
    return [Path(folder) for name in ("start_from", *names) if (folder := getattr(model, name))]


def check_source(model: Any, name: str, model_types: Sequence[str], files: Sequence[str]) -> None:
    """Raises LlavaError for a `model.NAME` that is no whole model of these types with these files; none is fine."""
    folder = getattr(model, name)
    if folder is not None:
        check_folder(folder, f"model.{name}", model_types, files, weights=True)


def check_sizes(path: str, parts: Sequence[str]) -> None:
    """Raises LlavaError for a `model.sizes` that does not describe these parts."""
    sizes = read_yaml(path)
    if set(sizes) != set(parts):
        raise LlavaError(f"{path}: expected the keys {' and '.join(parts)}; found {', '.join(map(str, sizes))}")


def changed(section: Any) -> list[str]:
    """The fields of a section that are not at their defaults."""
    return [field.name for field in fields(section) if getattr(section, field.name) != field.default]


def _batches(optim: OptimRecipe, world_size: int) -> list[str]:
    if not all(1 <= size <= LARGEST for size in (optim.batch_size, optim.global_batch_size)):
        return []  # a fault of its bounds
    if optim.global_batch_size % (optim.batch_size * world_size):
        return [
            f"optim.global_batch_size {optim.global_batch_size} is not a multiple of optim.batch_size "
            f"{optim.batch_size} times {world_size} processes"
        ]
    return []


def _packages(run: RunRecipe) -> list[str]:
    needed = {"deepspeed": "run.deepspeed"} if run.deepspeed else {}
    if run.report_to != "none":
        needed[run.report_to] = "run.report_to"
    faults = []
    if run.compile and not any(map(shutil.which, (os.environ.get("CXX", "g++"), "clang++"))):
        faults.append("run.compile needs a C++ compiler, g++ or clang++, and none is there; pass --run.compile false")
    return faults + [
        f"{key} needs the package {package}: pip install -e '.[train]', or pass --{key} none"
        for package, key in needed.items()
        if find_spec(package) is None
    ]


def check_attention_runs(attention: str) -> None:
    """Raises LlavaError for a `model.attention` that this place cannot run."""
    try:
        check_attention(attention)
    except LlavaError as error:
        raise LlavaError(f"model.attention {error}") from None


def check_deepspeed(run: RunRecipe) -> None:
    """Raises LlavaError for a `run.deepspeed` that training cannot use."""
    path = run.deepspeed
    if path is None:
        return
    try:
        config = read_json(path, by_hand=True)
    except LlavaError as error:
        raise LlavaError(f"run.deepspeed {error}") from error
    for block in BUILT_BY_TRAINER:
        if block in config:
            raise LlavaError(f"run.deepspeed {path}: the block '{block}' would discard the components' learning rates")
    zero = config.get("zero_optimization", {})
    if not zero.get("stage"):
        raise LlavaError(
            f"run.deepspeed {path}: zero_optimization.stage is {zero.get('stage')}, needed 1, 2 or 3; pass "
            "--run.deepspeed none to train without ZeRO"
        )
    if zero.get("stage") == 3 and not zero.get(GATHER):
        raise LlavaError(f"run.deepspeed {path}: stage 3 needs {GATHER}, or no checkpoint can be saved")
    if zero.get("stage") == 3 and run.compile:
        raise LlavaError(
            f"run.deepspeed {path}: stage 3 gathers weights between a layer's modules, which run.compile would make "
            "one; use stage 2, or pass --run.compile false"
        )


def zero_stage(run: RunRecipe) -> int | None:
    """Of the file `run.deepspeed`; None where there is none, or it says none."""
    if run.deepspeed is None:
        return None
    return read_json(run.deepspeed, by_hand=True).get("zero_optimization", {}).get("stage")


def check_data_files(key: str, mixture: str | None) -> None:
    """Raises LlavaError where files of a mixture are missing."""
    missing = missing_files(mixture) if mixture is not None else []
    if missing:
        raise LlavaError(f"{key} {mixture}: {len(missing)} data files missing, first {missing[0]}")


def check_is_folder(key: str, folder: str | None) -> None:
    """Raises LlavaError for a path that is no folder; none is fine."""
    if folder is not None and not Path(folder).is_dir():
        raise LlavaError(f"{key} {folder} is not a folder")
