"""What can be wrong with a recipe of the MLLM, and with its data, before a stage starts. Imports no torch."""

from collections.abc import Callable, Iterable
from dataclasses import fields, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from llava.bounds import LARGEST
from llava.checkpoint.folder import (
    NEEDED_PROCESSOR_FILES,
    NEEDED_TOKENIZER_FILES,
    TOWER_FOLDER_TYPES,
)
from llava.constants import LANGUAGE_MODEL_TYPES, MODEL_TYPE
from llava.data.inspect import inspect_samples
from llava.data.inspect_store import inspect_store
from llava.data.mixture import load_mixture, missing_files, mixture_entries
from llava.data.record_store import RecordStore
from llava.errors import LlavaError
from llava.printable import brief
from llava.train.family import Rules
from llava.train.folders.same_run import FREE_KEYS
from llava.train.folders.stage_folder import check_output_folder
from llava.train.recipe.checks import (
    changed,
    check_attention_runs,
    check_data_files,
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
from llava.train.recipe.running import RunRecipe
from llava.train.recipe.schema import (
    ComponentsRecipe,
    EvalRecipe,
    LoraRecipe,
    Recipe,
    TilingRecipe,
    named_components,
    recipe_keys,
)
from llava.train.recipe.way_on import past_unusable

SOURCES = ("vision_tower", "language_model")  # of `model`, in place of start_from


def checks_of(recipe: Recipe, dry_run: bool) -> list[Callable[[], object]]:
    """What raises LlavaError for a value that cannot be or, unless it is a dry run, for a missing file."""
    data, held_out = recipe.data, recipe.eval
    checks = [
        partial(check_sizes, recipe.model.sizes, ("vision", "text")),
        partial(_check_tiling, recipe.tiling),
        data.video_sampling,
        partial(check_deepspeed, recipe.run),
        partial(_check_partition, recipe.run, recipe.lora),
        partial(mixture_entries, data.mixture),
    ]
    if dry_run:
        return checks
    return [
        *checks,
        partial(check_attention_runs, recipe.model.attention),
        partial(check_output_folder, recipe),
        partial(check_data_files, "data.mixture", data.mixture),
        partial(check_is_folder, "data.image_folder", data.image_folder),
        partial(check_data_files, "eval.data", held_out.data),
        partial(check_is_folder, "eval.image_folder", held_out.image_folder),
    ]


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


def faults_of(recipe: Recipe) -> list[str]:
    """A line for each bad combination of keys, and for each number out of its bounds."""
    faults = _combinations(recipe) + out_of_bounds(recipe)
    image = recipe.data.expected_image
    if len(image) != 2 or not all(1 <= side <= LARGEST for side in image):
        faults.append(f"data.expected_image must be [width, height], both at least 1; found {brief(image)}")
    return faults


def _combinations(recipe: Recipe) -> list[str]:
    fusion, faults = recipe.fusion, source_faults(recipe.model, SOURCES)
    faults += [f"fusion.{fault}" for fault in fusion.faults()] + _lora_keys(recipe.lora, recipe.components)
    aspect_ratio = recipe.tiling.aspect_ratio
    tiled = aspect_ratio.startswith("anyres")
    if tiled and not fusion.takes_tiles:
        faults.append(
            f"fusion.method {fusion.method} takes one crop an image, tiling.aspect_ratio {aspect_ratio} adds tiles"
        )
    # Stage 1, whose language model is frozen, is square for every arm.
    if fusion.needs_tiles and not tiled and recipe.components.language_model.trained:
        faults.append(
            f"fusion.method {fusion.method} adds an image's tiles, tiling.aspect_ratio {aspect_ratio} makes none: "
            "it would train what none does"
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
        return [f"lora.{name} is for no component: components.*.lora is false" for name in changed(lora)]
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
    return [f"eval.{name} is for nothing: eval.data is none" for name in changed(held_out)]


def _check_tiling(tiling: TilingRecipe) -> None:
    pinpoints = tiling.pinpoints
    if isinstance(pinpoints, list) and any(len(pair) != 2 for pair in pinpoints):
        raise LlavaError(f"tiling.pinpoints must be pairs of width and height; found {pinpoints}")
    tiling.config(tile=1)


def _check_partition(run: RunRecipe, lora: LoraRecipe) -> None:
    if lora.base == "nf4" and zero_stage(run) == 3:
        raise LlavaError(
            f"run.deepspeed {run.deepspeed}: stage 3 would part 4-bit weights (lora.base nf4) from their scales"
        )


def start_faults(recipe: Recipe) -> list[str]:
    """What is wrong with the folders that the recipe starts from, the first fault of each."""
    return raised(
        partial(check_source, recipe.model, *kind)
        for kind in (
            ("start_from", (MODEL_TYPE,), NEEDED_PROCESSOR_FILES),
            ("vision_tower", TOWER_FOLDER_TYPES, ()),
            ("language_model", LANGUAGE_MODEL_TYPES, NEEDED_TOKENIZER_FILES),
        )
    )


def data_files(recipe: Recipe) -> Iterable[Path]:
    """The mixtures and their data files. Pictures are not among them: too many."""
    mixtures = [path for path in (recipe.data.mixture, recipe.eval.data) if path is not None]
    return [file for path in mixtures for file in (Path(path), *(entry.file for entry in mixture_entries(path)))]


MLLM_RULES = Rules(
    faults=faults_of,
    checks=checks_of,
    start_faults=start_faults,
    check_data=check_data,
    missing_files=lambda recipe: missing_files(recipe.data.mixture),
    data_files=data_files,
    start_folders=lambda recipe: source_folders(recipe.model, SOURCES),
    large_files=lambda recipe: (),
    free_keys=lambda recipe: FREE_KEYS,
    keys=lambda recipe: recipe_keys(recipe.fusion.method),
)
