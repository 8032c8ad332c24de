"""What a stage will do, in numbers: printed before it starts, and kept in its manifest."""

import math
from dataclasses import dataclass
from pathlib import Path

from llava.anyres import ImageLayout, image_layout
from llava.data.expected import expected_table
from llava.data.mixture import load_mixture, missing_files
from llava.mllm import LlavaOVManagerConfig
from llava.train.estimate.heaviest import heaviest_possible
from llava.train.estimate.memory import Work, describe_memory, recipe_activations, time_line
from llava.train.folders.stage_folder import check_start_folders
from llava.train.loop.components import Component, component_table, freeze, split_components
from llava.train.mllm.build import attention_implementation, build_on_meta, config_from_sizes, model_config
from llava.train.ranks.environment import world_size
from llava.train.recipe.dotted import flatten, shown
from llava.train.recipe.schema import Recipe


@dataclass(frozen=True)
class Plan:
    """samples: of one epoch. tokens: of the whole run, estimated. accumulation: micro-batches per process and step."""

    samples: int
    processes: int
    accumulation: int
    steps: int
    tokens: int

    @classmethod
    def of(cls, recipe: Recipe, config: LlavaOVManagerConfig, samples: int) -> "Plan":
        """The plan for `samples` samples; tokens follow from the recipe's typical image and text."""
        optim = recipe.optim
        steps = optim.max_steps or math.ceil(math.ceil(samples / optim.global_batch_size) * optim.epochs)
        per_sample = Work.of(recipe, expected_image(recipe, config)).tokens
        processes = world_size()
        return cls(
            samples=samples,
            processes=processes,
            accumulation=optim.global_batch_size // (optim.batch_size * processes),
            steps=steps,
            tokens=steps * optim.global_batch_size * per_sample,
        )


def expected_image(recipe: Recipe, config: LlavaOVManagerConfig) -> ImageLayout:
    """How the recipe's typical image is cut."""
    return image_layout(
        *recipe.data.expected_image,
        config.tiling,
        tile=config.vision_config.image_size,
        side=config.patches_per_side,
        several_images=False,
    )


def dry_run(recipe: Recipe, tokens_per_second: float | None = None) -> str:
    """What the stage would do, and need. Needs neither weights nor data: what is written in the recipe stands in.

    tokens_per_second: of all processes together, where it is known.
    """
    model = recipe.model
    folders = [folder for folder in (model.start_from, model.vision_tower, model.language_model) if folder]
    absent = [folder for folder in folders if not Path(folder).is_dir()]
    if not absent:
        check_start_folders(recipe)
    config = config_from_sizes(recipe) if absent else model_config(recipe)
    missing = missing_files(recipe.data.mixture)
    samples = recipe.data.expected_samples
    if not missing:
        samples = len(load_mixture(recipe.data.mixture, recipe.run.seed).samples)

    components = split_components(build_on_meta(config, recipe), recipe)
    freeze(components)
    notes = [f"note: no folder {folder} yet; the sizes are those of {model.sizes}" for folder in absent]
    if missing:
        notes.append(f"note: {len(missing)} data files are not there yet; samples are data.expected_samples")
    plan = Plan.of(recipe, config, samples)
    described = describe(recipe, plan, components, config, attention_implementation(recipe))
    needs = [f"time        {time_line(plan.tokens, tokens_per_second)}"]
    needs += ["", describe_memory(recipe, components, config, expected_image(recipe, config), plan.processes)]
    activations = recipe_activations(recipe, components, config)
    positions = config.text_config.max_position_embeddings
    longest, text = min(recipe.data.max_length, positions), recipe.data.expected_text_tokens
    needs += ["", heaviest_possible(recipe.optim.batch_size, longest, text, config, activations)]
    expected = expected_table(recipe.data.mixture)
    return "\n".join([described, "", *needs, "", *([expected, ""] if expected else []), *notes])


def describe(
    recipe: Recipe, plan: Plan, components: list[Component], config: LlavaOVManagerConfig, attention: str
) -> str:
    """The resolved recipe, the plan and the table of what trains, as text."""
    optim, width, height = recipe.optim, *recipe.data.expected_image
    keys = flatten(recipe.to_dict())
    return "\n".join(
        [
            *(f"{key:<{max(map(len, keys))}}  {shown(value)}" for key, value in keys.items()),
            "",
            f"samples     {plan.samples:,} x {optim.epochs:g} epochs",
            f"batch       {optim.global_batch_size} = {optim.batch_size} x {plan.accumulation} accumulated x "
            f"{plan.processes} processes",
            f"steps       {plan.steps:,}",
            f"tokens      about {plan.tokens:,} (a {width}x{height} image and {recipe.data.expected_text_tokens} text "
            "tokens a sample)",
            f"fusion      {config.fusion.describe()}",
            f"attention   {attention}",
            *(f"note: {note}" for note in notes(recipe, plan, config)),
            "",
            component_table(components),
        ]
    )


def notes(recipe: Recipe, plan: Plan, config: LlavaOVManagerConfig) -> list[str]:
    """What a user may not expect of the recipe's numbers."""
    notes, max_length, positions = [], recipe.data.max_length, config.text_config.max_position_embeddings
    if max_length > positions:
        limited = f"data.max_length {max_length:,} is more than the language model's {positions:,} positions"
        notes.append(f"{limited}, which limit a sample")
    if plan.steps == 1 and recipe.optim.warmup > 0:
        notes.append("the only step is warm-up, at a rate of 0: nothing is learned; pass --optim.warmup 0")
    return notes
