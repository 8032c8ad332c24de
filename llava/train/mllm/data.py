"""What a stage trains on and what is held out, as datasets whose samples were inspected before training."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
from transformers import TrainingArguments

from llava.data.dataset import SupervisedDataset
from llava.data.inspect import Fault, Inspection, SampleLines, inspect_samples
from llava.data.inspect_store import inspect_store
from llava.data.mixture import load_mixture
from llava.data.processor import LlavaOVManagerProcessor
from llava.data.record_store import RecordStore
from llava.data.sample_sizes import SampleSizes
from llava.data.sampler import LengthGroupedSampler
from llava.data.schema import Sample
from llava.errors import LlavaError
from llava.mllm.cost import Cost
from llava.train.folders.same_run import ANEW
from llava.train.loop.held_out import HeldOut, last_exchange
from llava.train.mllm.rules import check_skip_ids
from llava.train.ranks.process_group import first_on_each_host, on_first_rank
from llava.train.recipe.schema import Recipe
from llava.train.recipe.way_on import past_unusable, skip_option


def supervised_dataset(
    recipe: Recipe,
    samples: Sequence[Sample],
    processor: LlavaOVManagerProcessor,
    positions: int | None = None,
    *,
    trained_on: bool = False,
) -> SupervisedDataset:
    """The samples, encoded as the recipe says.

    positions: of the language model, which limit data.max_length. trained_on: data.skip_ids holds, and faults are
    noted.
    """
    data = recipe.data
    return SupervisedDataset(
        samples,
        processor,
        image_folder=data.folder(),
        template=data.template,
        label_rule=data.label_rule,
        max_length=data.max_length,
        on_bad_sample=data.on_bad_sample,
        skip_ids=(data.skip_ids or ()) if trained_on else (),
        notes_faults=trained_on,
        on_over_long=data.on_over_long,
        positions=positions,
        video_sampling=data.video_sampling(),
        time_instruction=data.time_instruction,
    )


def held_out(recipe: Recipe, processor: LlavaOVManagerProcessor, cost: Cost, positions: int) -> HeldOut | None:
    """What is evaluated while the stage trains; None where the recipe names nothing. positions: see supervised_dataset.

    Too long samples are asked nothing: the last question may be what they lose. A sample that cannot be read any more
    when its turn comes is skipped, and told; see HeldOutEvaluation.
    """
    if recipe.eval.data is None:
        return None
    load = partial(load_mixture, recipe.eval.data, recipe.run.seed)
    samples = first_on_each_host(load, recipe.run.startup_timeout).samples
    encoding = replace(recipe.data, image_folder=recipe.held_out_folder, on_bad_sample="skip")
    dataset = supervised_dataset(replace(recipe, data=encoding), samples, processor, positions)
    facts = held_out_facts(recipe, dataset)
    last_exchanges = [last_exchange(samples[number]) for number in facts.asked]
    encoding = replace(encoding, label_rule="answers", on_bad_sample="error")
    prompts = supervised_dataset(replace(recipe, data=encoding), last_exchanges, processor, positions)
    return HeldOut(dataset, facts.sizes.costs(cost), prompts, recipe.eval.max_new_tokens)


def train_sampler(dataset: SupervisedDataset, args: TrainingArguments, costs: np.ndarray) -> LengthGroupedSampler:
    """The order of training. costs: of each sample."""
    return LengthGroupedSampler(
        costs,
        dataset.is_multimodal,
        batch_size=args.per_device_train_batch_size,
        world_size=args.world_size,
        accumulation=args.gradient_accumulation_steps,
        seed=args.seed,
    )


def costs_once(recipe: Recipe, dataset: SupervisedDataset, cost: Cost) -> tuple[np.ndarray, SampleSizes | None]:
    """Operations of each sample, which order the training, and on rank 0 what they come of; every rank calls this.

    Rank 0 looks at the samples, see sample_sizes, and sends the costs alone: the rest would be as much again and more.
    It keeps crops, tokens and supervised tokens.
    """
    kept = None

    def on_first() -> np.ndarray:
        nonlocal kept
        sizes = sample_sizes(recipe, dataset)
        kept = SampleSizes(sizes.crops, sizes.tokens, sizes.supervised)
        return sizes.costs(cost)

    return on_first_rank(on_first, recipe.run.startup_timeout), kept


def sample_sizes(recipe: Recipe, dataset: SupervisedDataset) -> SampleSizes:
    """What makes the samples costly, found by one process, which tells what is odd.

    Raises:
        LlavaError: for an id in data.skip_ids that no sample has; DataError with all unusable and over-long samples,
            unless bad samples are to be skipped and others are left.
    """
    check_skip_ids(recipe, dataset.samples)
    template, skip_ids = dataset.encoding["template"], dataset.skip_ids
    inspection = inspect_store(
        dataset.samples, dataset.image_folder, dataset.video_sampling, template, skip_ids=skip_ids
    )
    way_on = partial(past_unusable, recipe=recipe)
    sizes = dataset.sizes(inspection)
    _told(dataset, inspection, sizes, may_skip=recipe.data.on_bad_sample == "skip", way_on=way_on)
    return sizes


@dataclass(frozen=True)
class HeldOutFacts:
    """What is known of the samples that are held out. asked: the numbers of those whose last question is asked."""

    sizes: SampleSizes
    asked: list[int]


def held_out_facts(recipe: Recipe, dataset: SupervisedDataset) -> HeldOutFacts:
    """What rank 0 finds when it decodes every image and video, sent as arrays; it also tells what is odd.

    Samples that are held out are never skipped: their loss would be another one.

    Raises:
        DataError: with all unusable and over-long samples.
    """
    return on_first_rank(partial(_held_out_facts, recipe.eval.answers, dataset), recipe.run.startup_timeout)


def _held_out_facts(answers: int, dataset: SupervisedDataset) -> HeldOutFacts:
    """As held_out_facts, on rank 0. answers: how many samples are asked."""
    inspection = inspect_samples(
        dataset.samples,
        dataset.image_folder,
        dataset.video_sampling,
        decode=True,
        template=dataset.encoding["template"],
    )
    sizes = dataset.sizes(inspection)
    _told(dataset, inspection, sizes, may_skip=False)
    inspected = zip(dataset.samples, inspection.image_sizes, inspection.videos)
    whole = (number for number, one in enumerate(inspected) if dataset.too_long(*one) is None)
    return HeldOutFacts(sizes, list(islice(whole, answers)))


def _told(
    dataset: SupervisedDataset,
    inspection: Inspection,
    sizes: SampleSizes,
    *,
    may_skip: bool,
    way_on: Callable[[Sequence[str]], str] = lambda _: "",
) -> None:
    """Tells what is odd, over-long samples too. Raises DataError with all unusable ones, see sample_sizes.

    sizes: by the inspection. way_on: of the ids of unusable samples, a last line for the error.
    """
    for sample, met in dataset.too_long_samples(inspection, sizes):
        line = f"{sample}: {met.message}"
        notes = {} if isinstance(met, Fault) else {met.kind: line}
        inspection.add(SampleLines(sample.id, None if notes else line, notes))
    if may_skip or not inspection.faults:
        print("".join(f"{line}\n" for line in inspection.told()), end="", flush=True)
    if inspection.faults and not (may_skip and len(inspection.faults) < len(dataset)):
        if may_skip:
            inspection.raise_faults("\nNone is left to train on")
        inspection.raise_faults(way_on(inspection.faulty))


def check_sizes(
    checkpoint: Path,
    recipe: Recipe,
    samples: RecordStore,
    before: np.ndarray,
    costs: np.ndarray,
    text_costs: np.ndarray,
) -> None:
    """Raises LlavaError unless a file that cannot be read, now or then, is why costs of the same records differ.

    Samples that are left out may show what they like.
    """
    skipped = frozenset(recipe.data.skip_ids or ())
    resized = np.flatnonzero((before != costs) & (before != text_costs) & (costs != text_costs)).tolist()
    changed = [samples[number] for number in resized if samples[number].id not in skipped]
    if changed:
        raise LlavaError(
            f"{checkpoint}: the data has changed since: {len(changed)} samples show images or videos of other sizes, "
            f"first {changed[0]}. Restore them, leave them out ({skip_option([changed[0].id], recipe)}), or {ANEW}"
        )
