"""A task's loss and metric on held-out pairs, over all ranks, while a stage trains; training never notices."""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch.utils.data import Sampler

from llava.data.collator import take_origins
from llava.data.pairs.dataset import PairDataset
from llava.data.pairs.draws import Draws, Purpose
from llava.data.pairs.mixture import load_pairs, read_pair_mixture
from llava.data.pairs.processor import PairProcessor
from llava.errors import DataError
from llava.train.loop.held_out_evaluation import tell, unnoticed
from llava.train.loop.trainer import LlavaTrainer
from llava.train.ranks.process_group import first_on_each_host, gathered
from llava.train.two_tower.data import inputs
from llava.train.two_tower.recipe import TwoTowerRecipe
from llava.two_tower.metrics import ranks_of
from llava.two_tower.objectives import count_items
from llava.two_tower.retrieval import Retrieval, scores_of
from llava.two_tower.tasks import TASKS


@dataclass(frozen=True)
class HeldOutPairs:
    """The pairs that are evaluated: the first `count` of the dataset."""

    dataset: PairDataset
    count: int


def held_out(recipe: TwoTowerRecipe, processor: PairProcessor) -> HeldOutPairs | None:
    """What is evaluated while the stage trains; None where the recipe names no split."""
    if recipe.eval.split is None:
        return None
    task, held = recipe.task.name, recipe.eval
    mixture = read_pair_mixture(held.data or recipe.data.mixture, TASKS[task].pairs)
    load = partial(load_pairs, mixture, recipe.eval.split, recipe.run.seed)
    store = first_on_each_host(load, recipe.run.startup_timeout).store
    dataset = PairDataset(
        store,
        processor,
        transform=TASKS[task].transform,
        parts=TASKS[task].parts,
        seed=recipe.run.seed,
        image_folder=recipe.data.folder(),
        notes_faults=True,
    )
    return HeldOutPairs(dataset, min(len(store), held.samples or len(store)))


class InOrder(Sampler[int]):
    """The first pairs in their order, batch by batch for all ranks; the last one fills up, so that all have as many."""

    def __init__(self, count: int, size: int):
        self.count, self.size = count, size  # size: of all ranks' batches

    def __len__(self) -> int:
        return -(-self.count // self.size) * self.size

    def __iter__(self) -> Iterator[int]:
        return (min(index, self.count - 1) for index in range(len(self)))


class PairEvaluation:
    """Evaluates held-out pairs.

    Args:
        recipe: of the stage.
        pairs: what is evaluated.
        trainer: whose model it is.
    """

    def __init__(self, recipe: TwoTowerRecipe, pairs: HeldOutPairs, trainer: LlavaTrainer):
        self.name, self.task, self.pairs = recipe.task.name, TASKS[recipe.task.name], pairs
        self.batch_size = recipe.eval.batch_size or recipe.optim.batch_size
        self.ranks, self.place = trainer.args.world_size, trainer.args.process_index
        self.device, self.rerank = trainer.args.device, recipe.eval.rerank
        self.compiled = recipe.run.compile is True

    def sampler(self, seed: int) -> InOrder:
        """All of them, in their order."""
        return InOrder(self.pairs.count, self.batch_size * self.ranks)

    def unnoticed(self) -> AbstractContextManager:
        """See llava.train.loop.held_out_evaluation.unnoticed."""
        return unnoticed(self.device, self.compiled)

    def after(self, trainer: LlavaTrainer) -> None:
        """Nothing more is due."""

    def metrics(self, trainer: LlavaTrainer, batches: Iterable[dict]) -> dict[str, float]:
        """`loss`, that of each objective where there are several, and the task's metric; means over all ranks' pairs.

        None of them, which is told, where a pair cannot be read.
        """
        names = self.task.objectives
        sums = torch.zeros(2 * len(names) + 2, dtype=torch.float64, device=self.device)
        lost: list[str] = []
        for number, batch in enumerate(batches):
            first = (number * self.ranks + self.place) * self.batch_size
            real = min(max(self.pairs.count - first, 0), self.batch_size)
            lost += [origin.fault for origin in take_origins(batch)[:real] if origin.fault is not None]
            of_batch = self._sums(trainer, batch, max(real, 1))
            sums += of_batch if real else 0 * of_batch
            trainer.control = trainer.callback_handler.on_prediction_step(trainer.args, trainer.state, trainer.control)
        unread = gathered(lost)
        if unread:
            tell(trainer.state.global_step, f"no evaluation: {unread[0]}")
            return {}
        totals = trainer.accelerator.reduce(sums).tolist()
        counts = totals[len(names) : 2 * len(names)]
        losses = {name: total / max(count, 1) for name, total, count in zip(names, totals, counts)}
        each = {f"loss_{name}": loss for name, loss in losses.items()} if len(losses) > 1 else {}
        score, examples = totals[-2:]
        return {"loss": sum(losses.values()), **each, self.task.metric: score / examples}

    def _sums(self, trainer: LlavaTrainer, batch: dict, rows: int) -> torch.Tensor:
        """float64: of the first rows the sum of each objective's losses, their numbers, the sum of scores, and rows."""
        batch = {name: tensor[:rows] for name, tensor in inputs(trainer._prepare_inputs(batch)).items()}
        ones = dict.fromkeys(self.task.objectives, 1.0)
        with torch.no_grad(), trainer.compute_loss_context_manager():
            output = trainer.model_wrapped(**batch, num_items_in_batch=ones)
        counts = count_items(self.name, batch)
        values = [output.losses[name] for name in self.task.objectives]
        values += [torch.as_tensor(counts[name], device=self.device) for name in self.task.objectives]
        values += [scores(batch, output.logits).sum(), torch.as_tensor(rows, device=self.device)]
        return torch.stack([value.double() for value in values])


class RetrievalEvaluation(PairEvaluation):
    """Evaluates held-out pairs by recalls of images and texts among each other, see llava/two_tower/retrieval.py."""

    def metrics(self, trainer: LlavaTrainer, batches: Iterable[dict]) -> dict[str, float]:
        """Recalls at 1, 5 and 10 both ways, and their mean; none, which is told, where an image cannot be read.

        Every rank embeds all, and keeps the pixels of its part of ITM: of all where ranks need each other (ZeRO-3).
        """
        try:
            return self._recalls(trainer)
        except DataError as error:
            tell(trainer.state.global_step, f"no evaluation: {error}")
            return {}

    def _recalls(self, trainer: LlavaTrainer) -> dict[str, float]:
        of_text = self.pairs.dataset.store.image_indices()[: self.pairs.count]
        images, image_of_text = np.unique(of_text, return_inverse=True)
        ranks, place = (1, 0) if trainer.zero_stage == 3 else (self.ranks, self.place)
        retrieval = Retrieval(trainer.model, self.rerank, self.batch_size)
        with trainer.compute_loss_context_manager(), trainer.accelerator.autocast():
            texts = retrieval.encode_texts(self._texts())
            kept: dict[int, torch.Tensor] = {}
            mine = range(len(images))[place::ranks]
            embedded = retrieval.embed_images(self._opened(images.tolist(), mine, kept))
            near = retrieval.near(embedded, texts.embeddings)
            logits = [(row, retrieval.match(pixels, texts, near[row])) for row, pixels in kept.items()]
        by_row = dict(gathered(logits))
        table = scores_of(near, [by_row[row] for row in range(len(images))], self.pairs.count)
        return ranks_of(table, image_of_text).recalls()

    def _texts(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        dataset = self.pairs.dataset
        for first in range(0, self.pairs.count, self.batch_size):
            chosen = range(first, min(first + self.batch_size, self.pairs.count))
            encoded = dataset.processor.encode([dataset.store[number].text for number in chosen])
            yield torch.tensor(encoded["input_ids"]), torch.tensor(encoded["attention_mask"])

    def _opened(self, images: list[int], mine: range, kept: dict[int, torch.Tensor]) -> Iterator[torch.Tensor]:
        """The pixels of each image (1, 3, S, S); those of the rows in `mine` are kept."""
        for row, image in enumerate(images):
            pixels = self._pixels(image)
            if row in mine:
                kept[row] = pixels
            yield pixels[None]

    def _pixels(self, image: int) -> torch.Tensor:
        dataset = self.pairs.dataset
        return dataset.transform(dataset.open(*dataset.store.image(image)), Draws(Purpose.IMAGE, 0))


def evaluation(recipe: TwoTowerRecipe, pairs: HeldOutPairs, trainer: LlavaTrainer) -> PairEvaluation:
    """What evaluates the held-out pairs of the recipe's task."""
    kind = RetrievalEvaluation if TASKS[recipe.task.name].metric == "r_mean" else PairEvaluation
    return kind(recipe, pairs, trainer)


def scores(batch: dict[str, torch.Tensor], logits: torch.Tensor) -> torch.Tensor:
    """(B,): how right each example's best label is: VQA's target of the answer, else 1 or 0."""
    best = logits.argmax(-1)
    if "targets" in batch:
        return batch["targets"].gather(1, best[:, None])[:, 0]
    return (best == batch["labels" if "labels" in batch else "itm_labels"]).float()
