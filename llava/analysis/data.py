"""What is analysed: samples of a mixture as in training, or documents of a task as in evaluation."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from llava.analysis.record import Recorder
from llava.data.collator import Collator
from llava.data.dataset import SupervisedDataset
from llava.data.image_folder import ImageFolder
from llava.data.index import FileKey
from llava.data.json_rows import SUFFIXES
from llava.data.mixture import load_mixture, mixture_entries
from llava.data.record_store import is_multimodal
from llava.engine.engine import Engine
from llava.errors import LlavaError
from llava.eval.catalogue import choose_tasks
from llava.eval.harness import OFFLINE, log_to_stderr
from llava.eval.task import data_folder
from llava.mllm.questions import question_finder

MIXTURES = (*SUFFIXES, ".yaml", ".yml")
NOT_OF_MODEL = ("labels", "supervised_positions", "samples")  # in a collator's batch: for the loss alone


class Encoded(NamedTuple):
    """What the model takes of some examples, and the places in the source of those that show something."""

    shown: list[int]
    inputs: Mapping[str, Any] | None


class Source(Protocol):
    """Examples in a fixed order. names: of each. identity: JSON values that change when the examples do."""

    names: Sequence[str]
    identity: dict[str, Any]

    def open(self, folder: Path, device: str, dtype: str, probes: Sequence[str]) -> tuple[Any, Any]:
        """A model: what `encode` encodes with, and what records, see record.py. device, dtype: as for Engine."""

    def encode(self, encoder: Any, places: Sequence[int]) -> Encoded:
        """One batch, on the CPU. Raises LlavaError that names the example."""


def open_llava(folder: Path, device: str, dtype: str, probes: Sequence[str]) -> tuple[Engine, Recorder]:
    """See Source.open."""
    engine = Engine.from_pretrained(folder, device, dtype, attn_implementation="sdpa")
    return engine, Recorder(engine.model, probes)


def is_mixture(data: str) -> bool:
    """Whether the word of --data is a file rather than a task's name."""
    return Path(data).suffix.lower() in MIXTURES or os.sep in data


def open_source(data: str, image_folder: str | Path, data_root: Path | None, limit: int) -> Source:
    """The first `limit` examples of a mixture that show something, or of a task.

    Raises:
        LlavaError: the data cannot be read, or show nothing.
    """
    if is_mixture(data):
        if Path(data).suffix.lower() not in MIXTURES:
            raise LlavaError(f"--data {data}: neither a file ({', '.join(MIXTURES)}) nor the name of a task")
        return MixtureSource(data, image_folder, limit)
    return TaskSource(data, data_root, limit)


class MixtureSource:
    """Samples with their conversations; those without an image and a video are passed over."""

    open = staticmethod(open_llava)

    def __init__(self, data: str, image_folder: str | Path, limit: int):
        mixture = load_mixture(data, seed=0)
        shown = np.flatnonzero(is_multimodal(mixture.samples))[:limit].tolist()
        if not shown:
            raise LlavaError(f"{data}: none of its {len(mixture.samples):,} samples shows an image or a video")
        self.samples = [mixture.samples[place] for place in shown]
        self.image_folder = ImageFolder.of(image_folder)
        self.names = [str(sample) for sample in self.samples]
        files = {str(entry.file): list(FileKey.of(entry.file)) for entry in mixture_entries(data)}
        self.identity = {"files": files, "image_folder": str(Path(image_folder).resolve())}

    def encode(self, engine: Engine, places: Sequence[int]) -> Encoded:
        """See Source."""
        config, processor = engine.model.config, engine.processor
        positions = config.text_config.max_position_embeddings
        dataset = SupervisedDataset(self.samples, processor, image_folder=self.image_folder, positions=positions)
        collate = Collator(processor.tokenizer.pad_token_id, questions=question_finder(config))
        batch = collate([dataset[place] for place in places])
        return Encoded(list(places), {key: value for key, value in batch.items() if key not in NOT_OF_MODEL})


class TaskSource:
    """Documents of a task, asked as `llava eval` asks them under the paper's protocol."""

    open = staticmethod(open_llava)

    def __init__(self, word: str, data_root: Path | None, limit: int):
        choices = choose_tasks([word])
        if len(choices) > 1:
            names = ", ".join(one.name for one in choices)
            raise LlavaError(f"--data {word}: {len(choices)} tasks; name one of {names}")
        (choice,) = choices
        folder = data_folder(data_root, choice.name, alone=True)
        if folder is not None:
            os.environ.update(OFFLINE)
        from llava.eval.dialogues import TaskDialogues  # imports datasets, which reads the environment

        log_to_stderr()
        self.dialogues = TaskDialogues(choice, folder, limit)
        self.names = self.dialogues.names
        self.identity = {"task": choice.name, "documents": self.dialogues.identity}

    def encode(self, engine: Engine, places: Sequence[int]) -> Encoded:
        """See Source."""
        dialogues = {place: self.dialogues[place] for place in places}
        shown = {place: dialogue for place, dialogue in dialogues.items() if dialogue.images or dialogue.videos}
        return Encoded(list(shown), engine.prepare(list(shown.values())) if shown else None)
