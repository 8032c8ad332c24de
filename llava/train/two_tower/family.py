"""The two towers as a family: what they give a stage."""

from functools import partial

import numpy as np
import torch
from torch import nn

from llava.mllm.cost import Cost
from llava.sizes import in_bytes
from llava.train.estimate.memory import FP32
from llava.train.estimate.plan import Plan
from llava.train.family import Family, StageData
from llava.train.loop.components import Component
from llava.train.ranks.environment import world_size
from llava.train.two_tower.build import build, build_on_meta, config_from_sizes, expected_config
from llava.train.two_tower.components import split_components
from llava.train.two_tower.data import (
    PairCollator,
    PairData,
    count,
    digest,
    ids_hash,
    inputs,
    items_of,
    load_data,
    sampled_rows,
    tokens_of,
    train_dataset,
    train_sampler,
)
from llava.train.two_tower.evaluation import evaluation, held_out
from llava.train.two_tower.memory import describe_memory, first_batch
from llava.train.two_tower.recipe import TwoTowerRecipe
from llava.two_tower.configuration import STATIC_KINDS, TwoTowerConfig
from llava.two_tower.cost import PASSES, image_tokens, training_cost
from llava.two_tower.modeling import TwoTowerForTask
from llava.two_tower.parts import PREFIXES
from llava.two_tower.tasks import TASKS


def prepare_layers(model: TwoTowerForTask, recipe: TwoTowerRecipe) -> None:
    """Computes layers again, or compiles the cross-modal ones, as `run` says; keeps states, as `model` does."""
    if recipe.model.keep_states is not None:
        model.model.keep_states({"images": ("image",), "all": ("text", "image")}[recipe.model.keep_states])
    if recipe.run.gradient_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    if recipe.run.compile:
        torch._dynamo.config.optimize_ddp = False  # the layers are compiled one by one, as its own splitting would
        for layer in model.model.cross_modal.layers:
            layer.compile(dynamic=True)


def split_weights(model: nn.Module, weights: dict) -> tuple[dict, None]:
    """All weights; there are no adapters."""
    return weights, None


def stage_data(
    recipe: TwoTowerRecipe,
    data: PairData,
    model: TwoTowerForTask,
    processor: object,
    components: list[Component],
) -> StageData:
    """What the Trainer is given."""
    dataset = train_dataset(recipe, data.samples, processor)
    evaluated = held_out(recipe, processor)
    return StageData(
        dataset=dataset,
        collator=PairCollator(recipe.task.name, padded=not model.config.mask_padding or gathers_texts(recipe)),
        costs=np.ones(len(dataset), dtype=np.float32),
        cost=operations(model.config, components),
        sampler=train_sampler,
        digest=partial(digest, data.samples),
        check_costs=lambda checkpoint, before: None,  # they are all alike; the digest tells other data
        heaviest=partial(first_batch, recipe, model.config),
        count=count,
        tokens=tokens_of,
        items=items_of,
        inputs=inputs,
        held_out=None if evaluated is None else evaluated.dataset,
        evaluation=None if evaluated is None else partial(evaluation, recipe, evaluated),
        when_wrapped=lambda model, wrapped: None,  # every micro-batch runs all parts
    )


def gathers_texts(recipe: TwoTowerRecipe) -> bool:
    """Ranks give each other their texts, which are then of one length: retrieval's hard negatives."""
    return "itm_hard" in TASKS[recipe.task.name].objectives and world_size() > 1


def operations(config: TwoTowerConfig, components: list[Component]) -> Cost:
    """Of training, by images, by a text's tokens without padding and their squared number, and by masked words."""
    trained = {component.name: component.trained for component in components}
    none, one, two = (training_cost(config, length, trained, masked=0) for length in range(3))
    pair = (two - 2 * one + none) // 2  # all is at most quadratic in the length
    return Cost(
        crop=int(none / PASSES[config.task].images),
        token=one - none - pair,
        token_pair=pair,
        supervised=training_cost(config, 0, trained, masked=1) - none,
    )


def tokens_of_sample(recipe: TwoTowerRecipe, config: TwoTowerConfig) -> int:
    """Of text, padding among them."""
    return recipe.data.text_length


def about(recipe: TwoTowerRecipe, plan: Plan, config: TwoTowerConfig) -> tuple[list[str], list[str]]:
    """Lines about tokens, work and bridge, and what a user may not expect."""
    optim, passes = recipe.optim, PASSES[config.task]
    work = training_cost(config, recipe.data.text_length, dict.fromkeys(PREFIXES, True))
    whole = work * optim.global_batch_size * plan.steps
    lines = [
        f"tokens      at most {plan.tokens:,} ({recipe.data.text_length} of a text, padding among them), and "
        f"{image_tokens(config):,} of each image",
        f"work        at most {work / 1e9:,.1f} GFLOP a pair forward and backward, where all trains: "
        f"{passes.texts} texts, {passes.images} images, {passes.fusions} fusions; {whole / 1e18:,.2f} EFLOP in all",
        f"bridge      {describe_bridge(config)}",
    ]
    if recipe.model.keep_states is not None:
        lines.append(f"kept        {describe_kept(recipe, config)}")
    notes = []
    if TASKS[config.task].metric == "r_mean" and plan.accumulation > 1:
        together = optim.batch_size * plan.processes
        notes.append(
            f"a pair is compared with the {together - 1} others of its micro-batch over all processes, not with the "
            f"{optim.global_batch_size - 1} of its step"
        )
    return lines, notes


def describe_kept(recipe: TwoTowerRecipe, config: TwoTowerConfig) -> str:
    """How large the states are that model.keep_states keeps."""
    image = FP32 * config.num_read("image") * image_tokens(config) * config.vision_config.hidden_size
    text = FP32 * config.num_read("text") * recipe.data.text_length * config.text_config.hidden_size
    texts = f", at most {in_bytes(text)} of each text" if recipe.model.keep_states == "all" else ""
    return f"{in_bytes(image)} of each image{texts}, on each rank that has seen it"


def describe_bridge(config: TwoTowerConfig) -> str:
    """The bridge in words."""
    layers = f"{config.cross_modal_layers} cross-modal layers of width {config.hidden_size}"
    if config.bridge == "meter":
        return f"METER{', gated' if config.gated_fusion else ''}, {layers}"
    if config.bridge == "bridge_tower":
        return f"BridgeTower, {layers}"
    how = "" if config.manager_kind in STATIC_KINDS else f", {config.query} query"
    experts = f"{config.text_layers} experts of text and {config.image_layers} of images"
    return f"ManagerTower, {config.manager_kind}{how}, weights {config.weight}, {experts}, {layers}"


def needs(recipe: TwoTowerRecipe, components: list[Component], config: TwoTowerConfig, plan: Plan) -> list[str]:
    """The estimated memory."""
    return [describe_memory(recipe, components, config, plan.processes), ""]


TWO_TOWER = Family(
    build=build,
    shares_weights=lambda recipe: True,
    config=expected_config,
    config_from_sizes=config_from_sizes,
    build_on_meta=build_on_meta,
    components=split_components,
    prepare_layers=prepare_layers,
    split_weights=split_weights,
    load_data=load_data,
    ids_hash=ids_hash,
    sampled_rows=sampled_rows,
    stage_data=stage_data,
    steps_of_epoch=lambda samples, size: samples // size,  # what does not fill a step is left out
    tokens_of_sample=tokens_of_sample,
    about=about,
    needs=needs,
)
