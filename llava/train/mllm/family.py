"""The MLLM as a family: what it gives a stage."""

import math
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from llava.data.collator import Collator
from llava.data.content import content_digest
from llava.data.expected import expected_table
from llava.data.mixture import Mixture, load_mixture
from llava.data.processor import LlavaOVManagerProcessor
from llava.data.sample_sizes import SampleSizes
from llava.data.sampler import LengthGroupedSampler
from llava.mllm import LlavaOVManagerConfig, LlavaOVManagerForConditionalGeneration
from llava.mllm.cost import training_cost
from llava.mllm.questions import question_finder
from llava.train.estimate.heaviest import Heaviest, heaviest, heaviest_possible
from llava.train.estimate.memory import Work, describe_memory, expected_image, recipe_activations
from llava.train.estimate.plan import Plan
from llava.train.family import Family, StageData
from llava.train.folders.manifest import ids_hash, sampled_rows
from llava.train.folders.stage_folder import ANSWERS
from llava.train.loop.answer_log import AnswerLog
from llava.train.loop.components import Component
from llava.train.loop.held_out import HeldOut
from llava.train.loop.held_out_evaluation import HeldOutEvaluation
from llava.train.loop.trainer import LlavaTrainer
from llava.train.mllm.build import build, build_on_meta, config_from_sizes, model_config
from llava.train.mllm.components import split_components
from llava.train.mllm.counts import count, tokens_of
from llava.train.mllm.data import check_sizes, costs_once, held_out, supervised_dataset, train_sampler
from llava.train.mllm.lora import split_weights
from llava.train.mllm.recompute_compile import prepare_layers
from llava.train.recipe.schema import Recipe


def load_data(recipe: Recipe) -> Mixture:
    """The samples of the recipe's mixture."""
    return load_mixture(recipe.data.mixture, recipe.run.seed)


def stage_data(
    recipe: Recipe,
    mixture: Mixture,
    model: LlavaOVManagerForConditionalGeneration,
    processor: LlavaOVManagerProcessor,
    components: list[Component],
) -> StageData:
    """What the Trainer is given: the samples are looked at before, once, by the first rank.

    Raises:
        LlavaError: see sample_sizes and held_out.
    """
    positions = model.config.text_config.max_position_embeddings
    dataset = supervised_dataset(recipe, mixture.samples, processor, positions, trained_on=True)
    cost = training_cost(model.config, [component.name for component in components if component.trained])
    costs, sizes = costs_once(recipe, dataset, cost)
    evaluated = held_out(recipe, processor, cost, positions)
    activations = recipe_activations(recipe, components, model.config)

    def check_costs(checkpoint: Path, before: np.ndarray) -> None:
        check_sizes(checkpoint, recipe, dataset.samples, before, costs, dataset.text_sizes().costs(cost))

    def find_heaviest(sampler: LengthGroupedSampler) -> Heaviest:  # on the first rank, which has the sizes
        return heaviest(sampler, cast(SampleSizes, sizes), recipe.data.packing, activations)

    return StageData(
        dataset=dataset,
        collator=Collator(processor.tokenizer.pad_token_id, recipe.data.packing, question_finder(model.config)),
        costs=costs,
        cost=cost,
        sampler=train_sampler,
        digest=partial(content_digest, dataset.samples),
        check_costs=check_costs,
        heaviest=find_heaviest,
        count=count,
        tokens=tokens_of,
        items=None,
        inputs=supervised_alone,
        held_out=None if evaluated is None else evaluated.dataset,
        evaluation=None if evaluated is None else partial(evaluation, recipe, evaluated),
        when_wrapped=when_wrapped,
    )


def supervised_alone(batch: dict) -> dict:
    """The batch for a loss over supervised positions alone."""
    return batch | {"skip_logits": True, "use_cache": False}


def evaluation(recipe: Recipe, evaluated: HeldOut, trainer: LlavaTrainer) -> HeldOutEvaluation:
    """What evaluates the held-out samples in a Trainer."""
    args = trainer.args
    answer_log = AnswerLog(Path(args.output_dir) / ANSWERS, evaluated, "wandb" in args.report_to, trainer.tensorboard)
    batch_size = args.per_device_eval_batch_size
    return HeldOutEvaluation(evaluated, answer_log, trainer.accelerator, batch_size, bool(recipe.run.compile))


def when_wrapped(model: LlavaOVManagerForConditionalGeneration, wrapped: nn.Module) -> None:
    """Tells the model what a rank's micro-batch without any image must run."""
    model.model.without_images = without_images(wrapped)


def without_images(wrapped: torch.nn.Module) -> str:
    """What a rank's micro-batch without any image must run of the vision side; see VisualFeaturesMixin.

    One process can be wrapped as many are. DDP, as it is set up here, waits for a gradient of everything that trains.
    ZeRO-2 adds up buckets that are filled as gradients come; offloaded, with any number of ranks, it uses a gradient of
    the step before again where a step brings none. So does ZeRO-3, which also gathers parameters, frozen ones too, on
    all ranks at once.

    Args:
        wrapped: the model as it trains.
    """
    if hasattr(wrapped, "zero_optimization_stage"):
        return "all" if wrapped.zero_optimization_stage() == 3 else "trained"
    return "trained" if isinstance(wrapped, DistributedDataParallel) else "nothing"


def shares_weights(recipe: Recipe) -> bool:
    """Each rank quantises by itself."""
    return recipe.lora.base == "full"


def tokens_of_sample(recipe: Recipe, config: LlavaOVManagerConfig) -> int:
    """Of the recipe's typical image and text."""
    return Work.of(recipe, expected_image(recipe, config)).tokens


def about(recipe: Recipe, plan: Plan, config: LlavaOVManagerConfig) -> tuple[list[str], list[str]]:
    """Lines about tokens and fusion, and what a user may not expect of the recipe's numbers."""
    width, height = recipe.data.expected_image
    lines = [
        f"tokens      about {plan.tokens:,} (a {width}x{height} image and {recipe.data.expected_text_tokens} text "
        "tokens a sample)",
        f"fusion      {config.fusion.describe()}",
    ]
    max_length, positions = recipe.data.max_length, config.text_config.max_position_embeddings
    if max_length <= positions:
        return lines, []
    limited = f"data.max_length {max_length:,} is more than the language model's {positions:,} positions"
    return lines, [f"{limited}, which limit a sample"]


def needs(recipe: Recipe, components: list[Component], config: LlavaOVManagerConfig, plan: Plan) -> list[str]:
    """The estimated memory, the heaviest micro-batch that there can be, and the data files with their rows."""
    lines = [describe_memory(recipe, components, config, expected_image(recipe, config), plan.processes)]
    activations = recipe_activations(recipe, components, config)
    positions = config.text_config.max_position_embeddings
    longest, text = min(recipe.data.max_length, positions), recipe.data.expected_text_tokens
    lines += ["", heaviest_possible(recipe.optim.batch_size, longest, text, config, activations), ""]
    expected = expected_table(recipe.data.mixture)
    return lines + ([expected, ""] if expected else [])


MLLM = Family(
    build=build,
    shares_weights=shares_weights,
    config=model_config,
    config_from_sizes=config_from_sizes,
    build_on_meta=build_on_meta,
    components=split_components,
    prepare_layers=prepare_layers,
    split_weights=split_weights,
    load_data=load_data,
    ids_hash=lambda mixture: ids_hash(mixture.samples.parts),
    sampled_rows=sampled_rows,
    stage_data=stage_data,
    steps_of_epoch=lambda samples, size: math.ceil(samples / size),
    tokens_of_sample=tokens_of_sample,
    about=about,
    needs=needs,
)
