"""What a stage trains on and what is held out, as datasets whose samples were inspected before training."""

from dataclasses import replace
from functools import partial
from itertools import islice

from llava.data.dataset import SupervisedDataset
from llava.data.inspect import Inspection, inspect_samples
from llava.data.mixture import load_mixture
from llava.mllm.cost import Cost
from llava.train.folders.interim import WAY_ON
from llava.train.loop.held_out import HeldOut, last_exchange
from llava.train.ranks.process_group import on_first_rank
from llava.train.recipe.schema import Recipe


def supervised_dataset(recipe: Recipe, samples: list, processor, positions: int | None = None) -> SupervisedDataset:
    """The samples, encoded as the recipe says. positions: of the language model, which limit data.max_length."""
    data = recipe.data
    return SupervisedDataset(
        samples,
        processor,
        image_folder=data.image_folder,
        template=data.template,
        label_rule=data.label_rule,
        max_length=data.max_length,
        on_bad_sample=data.on_bad_sample,
        on_over_long=data.on_over_long,
        positions=positions,
        video_sampling=data.video_sampling(),
        time_instruction=data.time_instruction,
    )


def held_out(recipe: Recipe, processor, cost: Cost, positions: int) -> HeldOut | None:
    """What is evaluated while the stage trains; None where the recipe names nothing. positions: see supervised_dataset.

    Too long samples are asked nothing: the last question may be what they lose. A sample that cannot be read any more
    when its turn comes is skipped, and told; see EvaluatingTrainer.
    """
    if recipe.eval.data is None:
        return None
    samples = load_mixture(recipe.eval.data, recipe.run.seed).samples
    encoding = replace(recipe.data, image_folder=recipe.held_out_folder, on_bad_sample="skip")
    dataset = supervised_dataset(replace(recipe, data=encoding), samples, processor, positions)
    inspection = inspect_once(recipe, dataset, held_out=True)
    sizes = dataset.sizes(inspection)
    inspected = zip(samples, inspection.image_sizes, inspection.videos)
    whole = (sample for sample, *found in inspected if dataset.too_long(sample, *found) is None)
    asked = [last_exchange(sample) for sample in islice(whole, recipe.eval.answers)]
    encoding = replace(encoding, label_rule="answers", on_bad_sample="error")
    prompts = supervised_dataset(replace(recipe, data=encoding), asked, processor, positions)
    costs = cost(sizes.crops, sizes.tokens, sizes.supervised)
    return HeldOut(dataset, costs, prompts, recipe.eval.max_new_tokens)


def inspect_once(recipe: Recipe, dataset: SupervisedDataset, held_out: bool = False) -> Inspection:
    """Image sizes for the sampler, read by rank 0 and sent to the others; rank 0 also tells what is odd.

    Samples that are held out are decoded, and never skipped: their loss would be another one.

    Raises:
        DataError: with all unusable and over-long samples, unless bad samples are to be skipped and others are left.
    """
    return on_first_rank(partial(_inspect, recipe, dataset, held_out))


def _inspect(recipe: Recipe, dataset: SupervisedDataset, held_out: bool) -> Inspection:
    may_skip = recipe.data.on_bad_sample == "skip" and not held_out
    inspection = inspect_samples(
        dataset.samples,
        dataset.image_folder,
        dataset.video_sampling,
        decode=held_out,
        template=dataset.encoding["template"],
    )
    too_long, shortened = dataset.over_long(inspection)
    notes = inspection.notes | ({"shortened": shortened} if shortened else {})
    inspection = replace(inspection, faults=inspection.faults + too_long, notes=notes)
    if may_skip or not inspection.faults:
        print("".join(f"{line}\n" for line in inspection.told()), end="", flush=True)
    if inspection.faults and not (may_skip and len(inspection.faults) < len(dataset)):
        if may_skip:
            inspection.raise_faults("\nNone is left to train on")
        inspection.raise_faults("" if held_out else WAY_ON)
    return replace(inspection, notes={})
