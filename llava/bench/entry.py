"""What a data set of the bench says of itself: its data, its pretrained parts and its questions. Imports no torch."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from llava.data.schema import Dialogue

# Mixtures in a data set's folder; paths count from the folder.
CAPTIONS, TRAIN, HELD_OUT = "captions.yaml", "train.yaml", "held_out.yaml"
Tower, Tiling = Literal["frozen", "trained"], Literal["square", "anyres"]  # what a bench chooses
UNTIMED = 3  # steps at the start of a measurement that are not counted
VISION_TOWER, LANGUAGE_MODEL = "vision_tower", "language_model"  # folders in that of the parts


@dataclass(frozen=True)
class Question:
    """One question of the test.

    document: what it is about; questions of one document are drawn together. kind: by which scores are also given.
    answers: those that are right.
    """

    id: str
    document: str
    kind: str
    answers: tuple[str, ...]
    dialogue: "Dialogue"

    def is_right(self, answer: str) -> bool:
        """Whether `answer` is one of the right ones, case and spaces aside."""
        return _normalised(answer) in map(_normalised, self.answers)


def _normalised(text: str) -> str:
    return " ".join(text.lower().split())


@dataclass(frozen=True)
class Pace:
    """Seconds of a job of one row: around its steps, of a step, and of an answer. batch_size: samples of a step."""

    around: float
    step: float
    answer: float
    batch_size: int


@dataclass(frozen=True)
class Recorded:
    """What a bench took elsewhere, by which it is told how long one will take until something is measured.

    where: the machine. making: seconds of data and parts, with the parts' own steps. pace: of the reference.
    """

    where: str
    making: float
    pace: Pace


@dataclass(frozen=True)
class Parts:
    """A tower and a language model that are pretrained once and shared by all runs.

    make: writes the folders VISION_TOWER and LANGUAGE_MODEL, given their folder and the number of steps. recipe: what
    training on them takes, with a section `grid`. steps: of pretraining. size: bytes of both, about. vision_layers,
    text_layers: of the tower, as far as it is used, and of the language model. sections: {row or arm: keys of `fusion`}
    of those whose defaults are not for models of these sizes. recorded: None where no bench has run on them.
    remark: what a reader of their tables must know.
    """

    make: Callable[[Path, int], None]
    recipe: str
    steps: int
    size: int
    vision_layers: int
    text_layers: int
    sections: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    recorded: Recorded | None = None
    remark: str = ""


@dataclass(frozen=True)
class DataSet:
    """A name that `--data` takes.

    make: writes CAPTIONS, TRAIN, HELD_OUT, their images and the test, given the folder and how many captions, samples,
    held-out samples and documents. questions: of the test in that folder, always in one order; questions_per_document:
    how many each has. max_new_tokens: of an answer. sample_size: bytes of a sample on disk, about. parts: what
    `--parts` takes.
    """

    make: Callable[[Path, int, int, int, int], None]
    questions: Callable[[Path], Iterator[Question]]
    questions_per_document: int
    max_new_tokens: int
    sample_size: int
    parts: Mapping[str, Parts]
