"""Pairs of images and texts, for two-tower models."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava.analysis.data import Encoded, is_mixture
from llava.analysis.two_tower import TwoTowerRecorder
from llava.checkpoint.loading import load_two_tower
from llava.data.index import FileKey
from llava.data.pairs.collator import collate_pairs
from llava.data.pairs.dataset import PairDataset
from llava.data.pairs.mixture import ALL, load_pairs, read_pair_mixture
from llava.data.pairs.processor import PairProcessor
from llava.data.pairs.tables import READ
from llava.engine.placement import best_dtype, choose_device
from llava.errors import LlavaError
from llava.eval.two_tower.names import choose_split
from llava.two_tower.tasks import TASKS

OF_MODEL = ("input_ids", "attention_mask", "pixel_values", "pixel_values_2")


@dataclass(frozen=True)
class Encoder:
    """What makes a model's inputs of pairs."""

    processor: PairProcessor
    task: str


class PairSource:
    """The first pairs of a split, as evaluation shows them.

    Args:
        data: a data file, a mixture of pairs, perhaps with `:SPLIT`, or SET.SPLIT as `llava eval --tasks` has it.
        task: of the first model, for SET.
        mixture: in place of the set's own.
        image_folder: None for the mixture's root.
        limit: how many at most.

    Raises:
        LlavaError: the data cannot be read.
    """

    def __init__(self, data: str, task: str, mixture: Path | None, image_folder: str | None, limit: int):
        name, _, split = data.rpartition(":") if ":" in data else (data, "", "")
        if is_mixture(name) or Path(name).suffix.lower() in READ:
            content = read_pair_mixture(name)
            split = split or (ALL if ALL in content.splits else "val")
        else:
            choice = choose_split(data, task, mixture)
            content, split = read_pair_mixture(choice.mixture, TASKS[task].pairs), choice.split
        self.store = load_pairs(content, split).store
        self.image_folder = content.root if image_folder is None else image_folder
        self.names = [f"{content.file.name} {split} pair {place}" for place in range(min(limit, len(self.store)))]
        files = {str(one.file): list(FileKey.of(one.file)) for one in self.store.files}
        self.identity: dict[str, Any] = {"files": files, "split": split, "image_folder": str(self.image_folder)}

    def open(self, folder: Path, device: str, dtype: str, probes: Sequence[str]) -> tuple[Encoder, TwoTowerRecorder]:
        """See Source."""
        place = choose_device(device)
        kind = best_dtype(place) if dtype == "auto" else dtype
        model = load_two_tower(folder, dtype=kind, attn_implementation="sdpa").to(place)
        images, most = len(self.store.kind.images), TASKS[model.config.task].num_images
        if images > most:
            raise LlavaError(f"{folder}: its task {model.config.task} shows {most} image, these pairs have {images}")
        return Encoder(PairProcessor.from_pretrained(folder), model.config.task), TwoTowerRecorder(model, probes)

    def encode(self, encoder: Encoder, places: Sequence[int]) -> Encoded:
        """See Source."""
        transform = TASKS[encoder.task].transform
        dataset = PairDataset(self.store, encoder.processor, transform=transform, image_folder=self.image_folder)
        batch = collate_pairs([dataset[place] for place in places])
        return Encoded(list(places), {name: batch[name] for name in OF_MODEL if name in batch})
