"""What a stage will do, in numbers: printed before it starts, and kept in its manifest."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from llava.errors import raise_faults
from llava.text_table import text_table
from llava.train.estimate.memory import time_line
from llava.train.family import StageRecipe, family_of, rules_of
from llava.train.loop.attention import attention_implementation
from llava.train.loop.components import Component, component_table, freeze
from llava.train.ranks.environment import world_size
from llava.train.recipe.dotted import flatten, shown


@dataclass(frozen=True)
class Plan:
    """samples: of one epoch. tokens: of the whole run, estimated. accumulation: micro-batches per process and step."""

    samples: int
    processes: int
    accumulation: int
    steps: int
    tokens: int

    @classmethod
    def of(cls, recipe: StageRecipe, samples: int, tokens_of_sample: int) -> "Plan":
        """The plan for `samples` samples of about so many tokens."""
        optim = recipe.optim
        of_epoch = family_of(recipe).steps_of_epoch(samples, optim.global_batch_size)
        steps = optim.max_steps or math.ceil(of_epoch * optim.epochs)
        processes = world_size()
        return cls(
            samples=samples,
            processes=processes,
            accumulation=optim.global_batch_size // (optim.batch_size * processes),
            steps=steps,
            tokens=steps * optim.global_batch_size * tokens_of_sample,
        )


def dry_run(recipe: StageRecipe, tokens_per_second: float | None = None) -> str:
    """What the stage would do, and need. Needs neither weights nor data: what is written in the recipe stands in.

    tokens_per_second: of all processes together, where it is known.
    """
    family, rules = family_of(recipe), rules_of(recipe)
    absent = [folder for folder in rules.start_folders(recipe) if not folder.is_dir()]
    if not absent:
        raise_faults("the model to start from", rules.start_faults(recipe))
    config = family.config_from_sizes(recipe) if absent else family.config(recipe)
    missing = rules.missing_files(recipe)
    samples = recipe.data.expected_samples if missing else len(family.load_data(recipe).samples)

    components = family.components(family.build_on_meta(config, recipe), recipe)
    freeze(components)
    plan = Plan.of(recipe, samples, family.tokens_of_sample(recipe, config))
    described = describe(
        recipe, plan, components, attention_implementation(recipe), *family.about(recipe, plan, config)
    )
    time = f"time        {time_line(plan.tokens, tokens_per_second)}"
    notes = [f"note: no folder {folder} yet; the sizes are those of {recipe.model.sizes}" for folder in absent]
    if missing:
        notes.append(f"note: {len(missing)} data files are not there yet; samples are data.expected_samples")
    return "\n".join([described, "", time, "", *family.needs(recipe, components, config, plan), *notes])


def describe(
    recipe: StageRecipe,
    plan: Plan,
    components: list[Component],
    attention: str,
    about: Sequence[str],
    notes: Sequence[str],
) -> str:
    """The resolved recipe, the plan and the table of what trains, as text.

    about, notes: what the family says of the plan.
    """
    optim = recipe.optim
    keys = flatten(recipe.to_dict())
    notes = [*notes]
    if plan.steps == 1 and optim.warmup > 0:
        notes.append("the only step is warm-up, at a rate of 0: nothing is learned; pass --optim.warmup 0")
    return "\n".join(
        [
            text_table([(key, shown(value)) for key, value in keys.items()], right=[False]),
            "",
            f"samples     {plan.samples:,} x {optim.epochs:g} epochs",
            f"batch       {optim.global_batch_size} = {optim.batch_size} x {plan.accumulation} accumulated x "
            f"{plan.processes} processes",
            f"steps       {plan.steps:,}",
            *about,
            f"attention   {attention}",
            *(f"note: {note}" for note in notes),
            "",
            component_table(components),
        ]
    )
