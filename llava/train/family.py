"""What training asks of a family of models: all that it knows of the one that a recipe trains.

There are two families, the MLLM (llava/train/mllm) and the two towers (llava/train/two_tower). Each gives one value of
Rules, which is asked while a recipe is read and checked, and one of Family, which a stage asks once it runs. StageData
is what a family makes of the stage's data, for the Trainer. The models have no class in common, and need none.

Imports no torch: which keys a recipe may have, and what is wrong with one, is told without it.
"""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import nn
    from torch.utils.data import DataLoader, Dataset, Sampler
    from transformers import PreTrainedModel, ProcessorMixin, TrainingArguments

    from llava.train.estimate.plan import Plan
    from llava.train.loop.components import Component
    from llava.train.loop.trainer import LlavaTrainer
    from llava.train.recipe.dotted import Key
    from llava.train.recipe.running import OptimRecipe, RunRecipe


class StageRecipe(Protocol):
    """What the recipes of both families have: what a stage is called, how it optimises and where it runs."""

    stage: str
    arm: str
    model: Any  # has sizes, start_from and attention
    data: Any  # has expected_samples and workers
    optim: "OptimRecipe"
    run: "RunRecipe"
    eval: Any  # has data, steps, at_start, batch_size
    lr_groups: str
    keeps_order: bool  # whether samples that are left out keep their places in the order of training

    @property
    def evaluates(self) -> bool:
        """Whether something is evaluated while it trains."""

    @property
    def uses_adapters(self) -> bool:
        """Whether a part trains through adapters."""

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values, as they are printed and saved."""


@dataclass(frozen=True)
class Rules:
    """What is asked of a family before anything is loaded; no function imports torch.

    Attributes:
        faults: of a recipe, a line for each bad combination of keys.
        checks: of a recipe, functions that raise LlavaError for a value or, unless it is a dry run, a missing file.
        start_faults: of a recipe, what is wrong with the folders that it starts from.
        check_data: of a recipe; reads the data and raises DataError with all faults.
        missing_files: of a recipe, the data files that it trains on and that are not there.
        data_files: of a recipe, the files whose content must be the same on every rank.
        start_folders: of a recipe, those of the models that it starts from.
        large_files: of a recipe, files of which only the size and both ends are compared.
        free_keys: of a recipe, the dotted keys that may change while a run is unfinished.
        keys: of a recipe, every dotted key that it has.
    """

    faults: Callable[[Any], list[str]]
    checks: Callable[[Any, bool], list[Callable[[], object]]]
    start_faults: Callable[[Any], list[str]]
    check_data: Callable[[Any], None]
    missing_files: Callable[[Any], list[Path]]
    data_files: Callable[[Any], Iterable[Path]]
    start_folders: Callable[[Any], list[Path]]
    large_files: Callable[[Any], Iterable[Path]]
    free_keys: Callable[[Any], Collection[str]]
    keys: "Callable[[Any], dict[str, Key]]"


class Data(Protocol):
    """What a stage trains on, as it is read: printed before the first step, and told in run.json."""

    samples: Any  # has a length
    table: list[Any]  # a dataclass for each file


class Evaluation(Protocol):
    """Evaluates what is held out, over all ranks, while a stage trains, which must not notice."""

    def sampler(self, seed: int) -> "Sampler":
        """The order of the held-out samples, for all ranks."""

    def unnoticed(self) -> Any:
        """A context: what happens inside changes no random number of the training."""

    def metrics(self, trainer: "LlavaTrainer", batches: "DataLoader") -> dict[str, float]:
        """The numbers to log, without their prefix; every rank calls it with batches of its own."""

    def after(self, trainer: "LlavaTrainer") -> None:
        """What else is due behind an evaluation; every rank calls it."""


@dataclass(frozen=True)
class StageData:
    """What a family makes of the stage's data and model, for the Trainer.

    Attributes:
        dataset: the samples of an epoch.
        collator: of training.
        costs: of each sample, by which the order may go.
        cost: operations, of what `count` counts; see StepLog.
        sampler: of the dataset, the Trainer's arguments and costs: the order of training.
        digest: of the data's content and these costs, for an unfinished run.
        check_costs: raises LlavaError where costs of an unfinished run's checkpoint are those of other data.
        heaviest: the micro-batch of an epoch in this order that takes most memory: None for none to try; how it is
            called, and its `indices`, which the dataset knows, and `supervised`, by which its loss is divided.
        count: of a micro-batch, 10 numbers: tokens, squared tokens by sequence, positions, supervised tokens, crops,
            and what Cost takes behind the squared tokens.
        tokens: of a micro-batch, without padding.
        items: of this rank's micro-batches of a step, {objective: how many items its loss is the sum of}, which the
            ranks' losses are divided by together; None for the Trainer's count of labels.
        inputs: of a micro-batch on its device, what the model is given.
        held_out: the samples that are evaluated while it trains; None for none.
        evaluation: of a Trainer, what evaluates them.
        when_wrapped: told of the model and of what the ranks' strategy made of it.
    """

    dataset: "Dataset"
    collator: Callable[[list], dict]
    costs: "np.ndarray"
    cost: Callable[..., Any]
    sampler: "Callable[[Any, TrainingArguments, np.ndarray], Sampler]"
    digest: "Callable[[np.ndarray], str]"
    check_costs: "Callable[[Path, np.ndarray], None]"
    heaviest: "Callable[[Sampler], Any]"
    count: "Callable[[dict], torch.Tensor]"
    tokens: Callable[[dict], int]
    items: Callable[[list[dict]], dict[str, int]] | None
    inputs: Callable[[dict], dict]
    held_out: "Dataset | None"
    evaluation: "Callable[[LlavaTrainer], Evaluation] | None"
    when_wrapped: "Callable[[PreTrainedModel, nn.Module], None]"


@dataclass(frozen=True)
class Family:
    """What a stage asks of a family while it is prepared, trained and saved.

    Attributes:
        build: of a recipe, and whether with weights: the model and what is saved with it. Without weights the model is
            on the meta device.
        shares_weights: of a recipe, whether the first rank alone loads the weights.
        config: of a recipe, that of the model to train, by the folders that it starts from.
        config_from_sizes: of a recipe, the same by `model.sizes`, where these folders are not there.
        build_on_meta: of a configuration and a recipe, the model that is counted.
        components: of a model and a recipe, what trains at which rate.
        prepare_layers: of a model that is frozen where it shall be: which layers are computed again, or compiled.
        split_weights: of a model and its gathered weights: those of a checkpoint, and adapters beside them or None.
        load_data: of a recipe, see Data.
        ids_hash: of Data, a hash of which samples they are.
        sampled_rows: of Data, which rows of each file are trained on.
        stage_data: of a recipe, Data, model, processor, components and the Trainer's arguments.
        steps_of_epoch: of so many samples and the size of a step.
        tokens_of_sample: of a recipe and a configuration, about.
        about: of a recipe, a plan and a configuration: lines behind `steps`, and notes.
        needs: of a recipe, components, configuration and plan: what a dry run says of memory and of the data.
    """

    build: "Callable[[Any, bool], tuple[PreTrainedModel, ProcessorMixin]]"
    shares_weights: Callable[[Any], bool]
    config: Callable[[Any], Any]
    config_from_sizes: Callable[[Any], Any]
    build_on_meta: "Callable[[Any, Any], nn.Module]"
    components: "Callable[[nn.Module, Any], list[Component]]"
    prepare_layers: "Callable[[Any, Any], None]"
    split_weights: "Callable[[nn.Module, dict[str, torch.Tensor]], tuple[dict, dict | None]]"
    load_data: Callable[[Any], Data]
    ids_hash: Callable[[Any], str]
    sampled_rows: Callable[[Any], list[dict]]
    stage_data: Callable[..., StageData]
    steps_of_epoch: Callable[[int, int], int]
    tokens_of_sample: Callable[[Any, Any], int]
    about: "Callable[[Any, Plan, Any], tuple[list[str], list[str]]]"
    needs: "Callable[[Any, list[Component], Any, Plan], list[str]]"


def rules_of(recipe: StageRecipe) -> Rules:
    """The rules of the family that a recipe trains."""
    if _is_two_tower(recipe):
        from llava.train.two_tower.rules import TWO_TOWER_RULES

        return TWO_TOWER_RULES
    from llava.train.mllm.rules import MLLM_RULES

    return MLLM_RULES


def family_of(recipe: StageRecipe) -> Family:
    """The family that a recipe trains."""
    if _is_two_tower(recipe):
        from llava.train.two_tower.family import TWO_TOWER

        return TWO_TOWER
    from llava.train.mllm.family import MLLM

    return MLLM


def _is_two_tower(recipe: StageRecipe) -> bool:
    from llava.train.two_tower.recipe import TwoTowerRecipe

    return isinstance(recipe, TwoTowerRecipe)
