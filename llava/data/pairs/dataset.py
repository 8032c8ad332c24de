"""Pairs as model inputs, one at a time, and the order in which they are trained on.

Whatever is random comes from (seed, epoch, number of the pair), or from the place in the epoch's order where it says
so: the same on any number of ranks, and after a resume.
"""

from collections.abc import Collection, Iterator
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset, Sampler
from transformers import DataCollatorForLanguageModeling

from llava.constants import IGNORE_INDEX, MASKED_WORDS
from llava.data.dataset import Origin
from llava.data.image_folder import ImageFolder
from llava.data.images import open_image
from llava.data.pairs.answers import form_among
from llava.data.pairs.draws import Draws, Purpose
from llava.data.pairs.pair import Pair
from llava.data.pairs.processor import PairProcessor
from llava.data.pairs.store import PairStore
from llava.data.schema import TransformName
from llava.errors import DataError
from llava.files import patiently
from llava.printable import one_line

Part = Literal["mlm", "itm", "answers", "label", "retrieval"]
BLOCK = 1 << 16  # places that are made at a time


class Place(NamedTuple):
    """A pair in the order of an epoch: the how manieth it is there, and its number in the store."""

    epoch: int
    position: int
    pair: int


class PairSampler(Sampler[Place]):
    """The places of one epoch, for all ranks, batch by batch: rank 0's first, then rank 1's, and so on.

    What does not fill the epoch's last optimizer step is left out, other pairs in every epoch: a contrastive batch
    cannot be filled up with nothing. Which pairs share a step depends on the size of the step alone.

    Args:
        length: Pairs in the store.
        batch_size: Pairs that a rank takes at once.
        world_size: Ranks.
        accumulation: Micro-steps of an optimizer step.
        seed: With the epoch, all that the order depends on.

    Raises:
        DataError: One step takes more pairs than there are.
    """

    def __init__(self, length: int, *, batch_size: int, world_size: int = 1, accumulation: int = 1, seed: int = 0):
        self.length, self.batch_size, self.world_size, self.accumulation = length, batch_size, world_size, accumulation
        self.seed, self.epoch = seed, 0
        if not len(self):
            raise DataError(f"one optimizer step takes {self._step} pairs, but there are only {length}")

    @property
    def _step(self) -> int:
        return self.batch_size * self.world_size * self.accumulation

    def set_epoch(self, epoch: int) -> None:
        """Chooses the order: with the seed, the epoch alone decides it."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length // self._step * self._step

    def __iter__(self) -> Iterator[Place]:
        # Bits and a stable sort are the same in every version of numpy; its own shuffles are not.
        order = np.argsort(np.random.PCG64([self.seed, self.epoch]).random_raw(self.length), kind="stable")
        for begin in range(0, len(self), BLOCK):  # of millions of pairs the order stays an array
            pairs = order[begin : min(begin + BLOCK, len(self))].tolist()
            yield from (Place(self.epoch, position, pair) for position, pair in enumerate(pairs, begin))


class PairDataset(Dataset):
    """Opens a pair's image, encodes its text, and adds what the objectives ask for.

    Args:
        store: The pairs.
        processor: Of the model.
        transform: Of images, see llava/data/pairs/transforms.py.
        parts: What an item has besides text and image: `mlm` masked text and its labels, `itm` itm_labels and, where it
            is 0, at every other place, a false image, `answers` targets, `label`, `retrieval` the image's number and
            draws of negatives.
        seed: Of all that is random.
        image_folder: Where images lie that are named by their path.
        notes_faults: Instead of raising DataError, yields an item whose Origin has the fault, so that all ranks of a
            run can end together.
    """

    def __init__(
        self,
        store: PairStore,
        processor: PairProcessor,
        *,
        transform: TransformName,
        parts: Collection[Part] = (),
        seed: int = 0,
        image_folder: str | Path | ImageFolder = ".",
        notes_faults: bool = False,
    ):
        self.store, self.processor, self.parts = store, processor, frozenset(parts)
        self.transform = processor.transform(transform)
        self.seed, self.notes_faults = seed, notes_faults
        self.image_folder = ImageFolder.of(image_folder)
        if "answers" in self.parts and processor.answers is None:
            raise DataError("the processor has no answers: there is no vocabulary for the head of questions")

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, place: Place | int) -> dict[str, Any]:
        """input_ids, attention_mask (L,), pixel_values (3, S, S), what the parts add, and `sample`, the pair's Origin.

        place: of a sampler's order; a number is the pair of that index in the order of the store.
        """
        place = place if isinstance(place, Place) else Place(0, place, place)
        try:
            pair = self.store[place.pair]
            item = self._encoded(pair, place)
        except DataError as error:
            if not self.notes_faults:
                raise
            return self._nothing(Origin(f"pair {place.pair}", fault=str(error)))
        return {**item, "sample": Origin(str(pair), id=pair.id)}

    def _encoded(self, pair: Pair, place: Place) -> dict[str, Any]:
        tokens = self.processor.encode(pair.text)
        item: dict[str, Any] = {name: torch.tensor(tokens[name]) for name in ("input_ids", "attention_mask")}
        for number, (name, image) in enumerate(zip(("pixel_values", "pixel_values_2"), pair.images)):
            draws = self._draws((Purpose.IMAGE, Purpose.SECOND_IMAGE)[number], place)
            item[name] = self.transform(self.open(image, pair.origin), draws)
        if "mlm" in self.parts:
            item |= self._masked(tokens, place)
        if "itm" in self.parts:
            item |= self._matched(place)
        if "answers" in self.parts:
            item["targets"] = torch.from_numpy(self.targets(pair))
        if "label" in self.parts:
            if pair.label is None:
                raise DataError(f"{pair.origin}: has no label to learn")
            item["labels"] = pair.label
        if "retrieval" in self.parts:
            draws = self._draws(Purpose.NEGATIVES, place)
            item |= {"image_index": pair.image_index, "negative_draws": torch.tensor([draws(), draws()])}
        return item

    def _draws(self, purpose: Purpose, place: Place) -> Draws:
        return Draws(purpose, self.seed, place.epoch, place.pair)

    def open(self, image: bytes | str, origin: str) -> Image.Image:
        """An RGB image. Raises DataError that names its place for one that cannot be read."""
        try:
            if isinstance(image, bytes):
                return open_image(BytesIO(image), "in the file")
            return patiently(open_image, self.image_folder.file(image))
        except DataError as error:
            raise DataError(f"{origin}: {one_line(str(error))}") from None

    def targets(self, pair: Pair) -> np.ndarray:
        """How right each answer of the vocabulary is, float32 (answers,); what is not in it does not count.

        Raises:
            DataError: The pair has no answers at all.
        """
        if pair.answers is None or pair.scores is None:
            raise DataError(f"{pair.origin}: has no answers to learn")
        targets = np.zeros(len(self._numbers), np.float32)
        for answer, score in zip(pair.answers, pair.scores):
            form = form_among(answer, self._numbers)
            if form is not None:
                targets[self._numbers[form]] = score
        return targets

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {answer: number for number, answer in enumerate(self.processor.answers or ())}

    def _masked(self, tokens: dict[str, list], place: Place) -> dict[str, torch.Tensor]:
        mask = self._masking
        mask.generator = torch.Generator().manual_seed(int(self._draws(Purpose.MASK, place)() * 2**53))
        inputs, special = (torch.tensor([tokens[name]]) for name in ("input_ids", "special_tokens_mask"))
        masked, labels = mask.torch_mask_tokens(inputs, special)
        return {"mlm_input_ids": masked[0], "mlm_labels": labels[0]}

    @cached_property
    def _masking(self) -> DataCollatorForLanguageModeling:
        return DataCollatorForLanguageModeling(self.processor.tokenizer, mlm_probability=MASKED_WORDS)

    def _matched(self, place: Place) -> dict[str, Any]:
        """For one of the places 2k and 2k + 1 a random other image of its data set; for the other its own is true."""
        draw = Draws(Purpose.FALSE_PLACE, self.seed, place.epoch, place.position // 2)()
        if place.position % 2 != int(draw < 0.5):
            return {"itm_labels": 1}
        draws = self._draws(Purpose.FALSE_IMAGE, place)
        image, origin = self.store.image(self.store.other_image(place.pair, draws()))
        return {"itm_labels": 0, "false_pixel_values": self.transform(self.open(image, origin), draws)}

    def _nothing(self, origin: Origin) -> dict[str, Any]:
        """An item of the right form on which no run goes on."""
        length, size = self.processor.text_length, self.processor.image_size
        tokens = torch.full((length,), int(self.processor.tokenizer.pad_token_id))
        pixels = torch.zeros(3, size, size)
        item: dict[str, Any] = {"input_ids": tokens, "attention_mask": torch.ones(length, dtype=torch.int64)}
        item["pixel_values"] = pixels
        if len(self.store.kind.images) > 1:
            item["pixel_values_2"] = pixels
        of_parts: dict[str, dict[str, Any]] = {
            "mlm": {"mlm_input_ids": tokens, "mlm_labels": torch.full((length,), IGNORE_INDEX)},
            "itm": {"itm_labels": 1},
            "answers": {"targets": torch.zeros(len(self._numbers))},
            "label": {"labels": 0},
            "retrieval": {"image_index": -1, "negative_draws": torch.zeros(2)},
        }
        for part in self.parts:
            item |= of_parts[part]
        return {**item, "sample": origin}
