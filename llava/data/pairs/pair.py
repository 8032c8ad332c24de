"""A text and its image or images, and the four kinds of data sets that have such pairs."""

from dataclasses import dataclass
from typing import Any

from llava.printable import brief, one_line


@dataclass(frozen=True)
class PairKind:
    """What the rows of a data set hold.

    name: as mixtures write it. images: the columns of a row's images. texts: the column of its texts, each of which
    makes a pair. truths: the columns that say what is true of a text, one of which a data set to learn from has.
    words: what a text is called in messages.
    """

    name: str
    images: tuple[str, ...]
    texts: str
    truths: tuple[str, ...]
    words: str


KINDS = {
    kind.name: kind
    for kind in (
        PairKind("captions", ("image",), "caption", (), "caption"),
        PairKind("questions", ("image",), "questions", ("answers", "answer_labels"), "question"),
        PairKind("statements", ("image_0", "image_1"), "questions", ("answers", "labels"), "statement"),
        PairKind("entailment", ("image",), "sentences", ("labels",), "sentence"),
    )
}
# What a text's label is called in data files; the numbers are the reference's.
LABELS = {
    "statements": {"False": 0, "True": 1},
    "entailment": {"contradiction": 0, "neutral": 1, "entailment": 2},
}


@dataclass(frozen=True)
class Pair:
    """A text and what it is about.

    images: of each image its bytes as they are stored, or its path. image_index: the image's number in the store; texts
    about the same image have the same. answers, scores: to a question, and how right each is, in [0, 1]; None where
    there are none, as in a test split. answer_labels: the numbers of the answers in the data file's own vocabulary.
    label: of a statement or a sentence. origin: file, row and text, counted from 1. id: of the row, by which skip_ids
    leave it out: its own, or FILE:ROW.
    """

    text: str
    images: tuple[bytes | str, ...]
    image_index: int
    origin: str
    id: str
    answers: tuple[str, ...] | None = None
    scores: tuple[float, ...] | None = None
    label: int | None = None
    question_id: int | str | None = None

    def __str__(self) -> str:
        return f"pair {brief(self.id)} ({one_line(self.origin)})"


def label_of(kind: str, value: Any) -> int | None:
    """The number of a label that is written as a word, a truth value or a number; None for what is none."""
    labels = LABELS[kind]
    if isinstance(value, bool):
        return int(value) if kind == "statements" else None
    text = str(value).strip()
    if text.isdigit():
        return int(text) if int(text) < len(labels) else None
    return {name.lower(): number for name, number in labels.items()}.get(text.lower())
