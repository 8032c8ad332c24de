"""What a stage of the two towers trains on and evaluates: pairs, their order, their batches, what a step divides by."""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import TrainingArguments

from llava.data.mixture import MixtureRow
from llava.data.pairs.collator import collate_pairs
from llava.data.pairs.dataset import PairDataset, PairSampler
from llava.data.pairs.mixture import LoadedPairs, load_pairs, read_pair_mixture
from llava.data.pairs.processor import PairProcessor
from llava.data.pairs.store import PairStore
from llava.files import ends_hash
from llava.train.ranks.preflight import unbroken_runs
from llava.train.two_tower.recipe import TwoTowerRecipe
from llava.two_tower.objectives import count_items
from llava.two_tower.tasks import TASKS

COUNTS = ("items", "lengths")  # of a batch, numbers for the log and the loss that the model does not take


@dataclass(frozen=True)
class PairData:
    """The pairs of the recipe's split."""

    loaded: LoadedPairs

    @property
    def samples(self) -> PairStore:
        """The pairs."""
        return self.loaded.store

    @property
    def table(self) -> list[MixtureRow]:
        """What each file gives, in rows."""
        return [MixtureRow(row.name, row.sampling_strategy, row.rows, row.taken) for row in self.loaded.table]

    def __str__(self) -> str:
        return str(self.loaded)


def load_data(recipe: TwoTowerRecipe) -> PairData:
    """The pairs that the stage trains on."""
    data = recipe.data
    mixture = read_pair_mixture(data.mixture, TASKS[recipe.task.name].pairs)
    return PairData(load_pairs(mixture, data.split, recipe.run.seed, data.skip_ids or ()))


def sampled_rows(data: PairData) -> list[dict]:
    """Which rows of each data file are trained on: {file, set, rows, pairs}; rows as [first, last], counted from 1."""
    return [
        {"file": str(one.file), "set": one.set_name, "rows": unbroken_runs(one.rows + 1), "pairs": len(one)}
        for one in data.samples.files
    ]


def ids_hash(data: PairData) -> str:
    """The SHA-256 of the rows that are trained on."""
    return hashlib.sha256(json.dumps(sampled_rows(data)).encode()).hexdigest()


def digest(store: PairStore, costs: np.ndarray) -> str:
    """A hash of what an unfinished run trains on: rows, texts of each, and size and ends of each file."""
    summed = hashlib.sha256()
    for one in store.files:
        summed.update(f"{one.set_name} {ends_hash(one.file)} ".encode())
        summed.update(np.ascontiguousarray(one.rows).tobytes())
        summed.update(np.ascontiguousarray(one.counts).tobytes())
    return summed.hexdigest()


def train_dataset(recipe: TwoTowerRecipe, store: PairStore, processor: PairProcessor) -> PairDataset:
    """The pairs, encoded as the recipe's task needs them."""
    return PairDataset(
        store,
        processor,
        transform=recipe.data.transform,
        parts=TASKS[recipe.task.name].parts,
        seed=recipe.run.seed,
        image_folder=recipe.data.folder(),
        notes_faults=True,
    )


def train_sampler(dataset: PairDataset, args: TrainingArguments, costs: np.ndarray) -> PairSampler:
    """The order of training; the costs, all alike, have no part in it."""
    return PairSampler(
        len(dataset),
        batch_size=args.per_device_train_batch_size,
        world_size=args.world_size,
        accumulation=args.gradient_accumulation_steps,
        seed=args.seed,
    )


@dataclass(frozen=True)
class PairCollator:
    """One batch of items, with what is counted of it before it goes to a GPU, which nobody need then wait for.

    items: {objective: how many it sums}. lengths: text tokens of each pair. padded: see collate_pairs.
    """

    task: str
    padded: bool

    def __call__(self, items: list[dict[str, Any]]) -> dict[str, Any]:
        """See collate_pairs."""
        batch = collate_pairs(items, self.padded)
        batch["lengths"] = batch["attention_mask"].sum(1).tolist()
        batch["items"] = {name: int(number) for name, number in count_items(self.task, batch).items()}
        return batch


def inputs(batch: dict) -> dict:
    """What of a batch the model takes."""
    return {name: value for name, value in batch.items() if name not in COUNTS}


def items_of(batches: list[dict]) -> dict[str, int]:
    """{objective: how many items it sums} of a step's micro-batches together."""
    return {name: sum(batch["items"][name] for batch in batches) for name in batches[0]["items"]}


def tokens_of(batch: dict) -> int:
    """Of texts, without padding."""
    return sum(batch["lengths"])


def count(batch: dict) -> torch.Tensor:
    """See StageData.count; supervised tokens are the masked ones, or the examples; crops are images."""
    lengths = batch["lengths"]
    images = sum(len(batch[name]) for name in ("pixel_values", "pixel_values_2", "false_pixel_values") if name in batch)
    pairs = sum(length**2 for length in lengths)
    supervised = batch["items"].get("mlm", len(lengths))
    return torch.tensor([sum(lengths), pairs, batch["input_ids"].numel(), supervised, images, *[0] * 5])
