"""What can be wrong with a stage before it starts: combinations of keys, missing files, data. Imports no torch."""

import os
import shutil
from dataclasses import fields, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from llava.bounds import LARGEST
from llava.data.inspect import inspect_samples
from llava.data.inspect_store import inspect_store
from llava.data.mixture import load_mixture, missing_files, mixture_entries
from llava.data.record_store import RecordStore
from llava.engine.checks import check_attention
from llava.errors import LlavaError, raise_faults
from llava.printable import brief
from llava.train.folders.same_run import check_resume
from llava.train.folders.stage_folder import check_output_folder, start_folder_faults
from llava.train.recipe.dotted import flatten, read_json, read_yaml
from llava.train.recipe.schema import (
    ComponentsRecipe,
    EvalRecipe,
    LoraRecipe,
    ModelRecipe,
    OptimRecipe,
    Recipe,
    RunRecipe,
    TilingRecipe,
    named_components,
    recipe_keys,
)
from llava.train.recipe.way_on import past_unusable

BUILT_BY_TRAINER = ("optimizer", "scheduler")  # blocks that would replace the Trainer's, with one rate for everything
GATHER = "stage3_gather_16bit_weights_on_model_save"


def check_recipe(recipe: Recipe, world_size: int, dry_run: bool) -> None:
    """Raises one LlavaError that lists every bad combination and, unless `dry_run`, every missing file or folder."""
    faults = _combinations(recipe) + _out_of_bounds(recipe) + _batches(recipe.optim, world_size)
    data, held_out = recipe.data, recipe.eval
    checks = [
        partial(_check_sizes, recipe.model),
        partial(_check_tiling, recipe.tiling),
        data.video_sampling,
        partial(_check_deepspeed, recipe.run, recipe.lora),
        partial(mixture_entries, data.mixture),
    ]
    if not dry_run:
        faults += _packages(recipe.run) + start_folder_faults(recipe)
        checks += [
            partial(_check_attention, recipe.model),
            partial(check_output_folder, recipe),
            partial(_check_data_files, "data.mixture", data.mixture),
            partial(_check_folder, "data.image_folder", data.image_folder),
            partial(_check_data_files, "eval.data", held_out.data),
            partial(_check_folder, "eval.image_folder", held_out.image_folder),
            partial(check_resume, recipe, world_size),
        ]
    for check in checks:
        try:
            check()
        except LlavaError as error:
            faults.append(str(error))
    raise_faults(f"the recipe of stage {recipe.stage}, arm {recipe.arm},", list(dict.fromkeys(faults)))


def check_data(recipe: Recipe) -> None:
    """Reads the mixture and the header of every image and video, and decodes those of the held-out samples.

    Raises DataError with all faults, of training data unless bad samples are skipped.
    """
    samples = load_mixture(recipe.data.mixture, recipe.run.seed).samples
    check_skip_ids(recipe, samples)
    if recipe.data.on_bad_sample == "error":
        folder, template = recipe.data.folder(), recipe.data.template
        skip_ids = frozenset(recipe.data.skip_ids or ())
        inspection = inspect_store(samples, folder, recipe.data.video_sampling(), template, skip_ids=skip_ids)
        inspection.raise_faults(past_unusable(inspection.faulty, recipe))
    if recipe.eval.data is not None:
        samples = load_mixture(recipe.eval.data, recipe.run.seed).samples
        folder, template = replace(recipe.data, image_folder=recipe.held_out_folder).folder(), recipe.data.template
        inspect_samples(samples, folder, recipe.data.video_sampling(), decode=True, template=template).raise_faults()


def check_skip_ids(recipe: Recipe, samples: RecordStore) -> None:
    """Raises LlavaError for an id in `data.skip_ids` that no sample has."""
    unknown = {name.encode(): name for name in recipe.data.skip_ids or ()}
    for part in samples.parts if unknown else ():
        for block in part.index.ids(part.rows):
            for name in unknown.keys() & set(block.split(b"\n")):
                del unknown[name]
    if unknown:
        listed = ", ".join(map(brief, unknown.values()))
        raise LlavaError(
            f"data.skip_ids: no sample of {recipe.data.mixture} has the id {listed}; in a YAML file ids of digits need "
            "quotes"
        )


def _out_of_bounds(recipe: Recipe) -> list[str]:
    """A line for each number that is not within the bounds of its field."""
    values = flatten(recipe.to_dict())
    keys = recipe_keys(recipe.fusion.method)
    bounded = {key: field.bounds for key, field in keys.items() if field.bounds is not None}
    judged = {key: bounds.fault(values[key]) for key, bounds in bounded.items() if values[key] is not None}
    faults = [f"{key} {fault}" for key, fault in judged.items() if fault is not None]
    image = recipe.data.expected_image
    if len(image) != 2 or not all(1 <= side <= LARGEST for side in image):
        faults.append(f"data.expected_image must be [width, height], both at least 1; found {brief(image)}")
    return faults


def _combinations(recipe: Recipe) -> list[str]:
    faults = []
    model, fusion = recipe.model, recipe.fusion
    sources = [name for name in ("vision_tower", "language_model") if getattr(model, name) is not None]
    if model.start_from is not None and sources:
        faults.append(f"model.start_from and model.{sources[0]} exclude each other")
    if model.start_from is None and len(sources) < 2:
        faults.append("the model needs model.start_from, or model.vision_tower and model.language_model")
    faults += [f"fusion.{fault}" for fault in fusion.faults()] + _lora_keys(recipe.lora, recipe.components)
    if recipe.tiling.aspect_ratio.startswith("anyres") and not fusion.takes_tiles:
        aspect_ratio = recipe.tiling.aspect_ratio
        faults.append(
            f"fusion.method {fusion.method} takes one crop an image, tiling.aspect_ratio {aspect_ratio} adds tiles"
        )
    faults += _eval_keys(recipe.eval) + _layer_keys(recipe.run, recipe.lora)
    present = [field.name for field in fields(recipe.components) if field.name != "fusion" or fusion.method != "none"]
    if not any(getattr(recipe.components, name).trained for name in present):
        faults.append("nothing trains: every component is frozen")
    return faults


def _layer_keys(run: RunRecipe, lora: LoraRecipe) -> list[str]:
    """What cannot be checkpointed or compiled."""
    faults = []
    for key in ("gradient_checkpointing", "compile"):
        names = named_components(getattr(run, key))
        faults += [f"run.{key} names {name} twice" for name in sorted(set(names)) if names.count(name) > 1]
    if run.compile and lora.base == "nf4":
        faults.append("run.compile cannot compile 4-bit weights (lora.base nf4); pass --run.compile false")
    return faults


def _lora_keys(lora: LoraRecipe, components: ComponentsRecipe) -> list[str]:
    by_name = {field.name: getattr(components, field.name) for field in fields(components)}
    adapted = {name: component for name, component in by_name.items() if getattr(component, "lora", False)}
    if not adapted:
        return [f"lora.{name} is for no component: components.*.lora is false" for name in _changed(lora)]
    faults = [
        f"components.{name}.lora needs components.{name}.trained true"
        for name, component in adapted.items()
        if not component.trained
    ]
    if lora.target_modules == []:
        faults.append("lora.target_modules is empty; none is every linear layer")
    needed = {"peft": ("train", "components.*.lora")}  # a dry run too counts with it
    if lora.base == "nf4":
        needed["bitsandbytes"] = ("quantization", "lora.base nf4")
    return faults + [
        f"{key} needs the package {package}: pip install -e '.[{extra}]'"
        for package, (extra, key) in needed.items()
        if find_spec(package) is None
    ]


def _eval_keys(held_out: EvalRecipe) -> list[str]:
    """Keys that have no effect because nothing is evaluated."""
    if held_out.data is not None:
        return []
    return [f"eval.{name} is for nothing: eval.data is none" for name in _changed(held_out)]


def _changed(section: LoraRecipe | EvalRecipe) -> list[str]:
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


def _check_attention(model: ModelRecipe) -> None:
    try:
        check_attention(model.attention)
    except LlavaError as error:
        raise LlavaError(f"model.attention {error}") from None


def _check_sizes(model: ModelRecipe) -> None:
    sizes = read_yaml(model.sizes)
    if set(sizes) != {"vision", "text"}:
        raise LlavaError(f"{model.sizes}: expected the keys vision and text; found {', '.join(map(str, sizes))}")


def _check_tiling(tiling: TilingRecipe) -> None:
    pinpoints = tiling.pinpoints
    if isinstance(pinpoints, list) and any(len(pair) != 2 for pair in pinpoints):
        raise LlavaError(f"tiling.pinpoints must be pairs of width and height; found {pinpoints}")
    tiling.config(tile=1)


def _check_deepspeed(run: RunRecipe, lora: LoraRecipe) -> None:
    path = run.deepspeed
    if path is None:
        return
    try:
        config = read_json(path)
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
    if zero.get("stage") == 3 and lora.base == "nf4":
        raise LlavaError(f"run.deepspeed {path}: stage 3 would part 4-bit weights (lora.base nf4) from their scales")


def _check_data_files(key: str, mixture: str | None) -> None:
    missing = missing_files(mixture) if mixture is not None else []
    if missing:
        raise LlavaError(f"{key} {mixture}: {len(missing)} data files missing, first {missing[0]}")


def _check_folder(key: str, folder: str | None) -> None:
    if folder is not None and not Path(folder).is_dir():
        raise LlavaError(f"{key} {folder} is not a folder")
