"""What a two-tower model is asked, one document each, and what of its answers is stored.

Of questions, sentences and statements a document is a pair. Of retrieval the documents are all texts and then all
images; what ITM says of an image and the texts near it is stored as one answer.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from llava.data.index import FileKey
from llava.data.pairs.answers import normalize_answer
from llava.data.pairs.pair import LABELS, Pair
from llava.data.pairs.store import PairStore
from llava.errors import DataError
from llava.files import whole_file
from llava.two_tower.metrics import RECALLS, Ranks, vqa_score
from llava.two_tower.tasks import TASKS

KEY_VERSION = 1  # to be raised when the same model answers the same question differently, by a change of our code


@dataclass(frozen=True)
class Documents:
    """The first pairs of a store, as a task asks them.

    limit: how many documents, or of retrieval how many images; None is all. settings: what answers depend on besides
    the data: the model and how it computes.
    """

    store: PairStore
    task: str
    limit: int | None
    settings: tuple

    @cached_property
    def _files(self) -> dict[Path, tuple]:
        return {file.file: (file.file.name, FileKey.of(file.file)) for file in self.store.files}

    def key(self, position: int, *others: object) -> str:
        """32 hex digits that change with anything that the answer to a pair depends on, without reading its image."""
        file, place = self.store.where(position)
        content = repr((KEY_VERSION, self.settings, self.task, self._files[file], tuple(place), others))
        return hashlib.sha256(content.encode()).hexdigest()[:32]

    @property
    def pairs(self) -> range:
        """The positions of the pairs that are asked, where each is a document."""
        return range(min(len(self.store), self.limit or len(self.store)))

    @cached_property
    def images(self) -> np.ndarray:
        """Of retrieval: for each image that has a text, the position of its first text."""
        firsts = np.unique(self.store.image_indices(), return_index=True)[1]
        return np.sort(firsts)[: self.limit]

    @cached_property
    def texts(self) -> tuple[np.ndarray, np.ndarray]:
        """Of retrieval: the positions of the texts of these images, and for each which image it is of, from 0."""
        of_pairs = self.store.image_indices()
        chosen = of_pairs[self.images]
        positions = np.flatnonzero(np.isin(of_pairs, chosen))
        order = np.argsort(chosen)
        return positions, order[np.searchsorted(chosen, of_pairs[positions], sorter=order)]

    def describe(self, position: int, pair: Pair) -> dict:
        """The fields of a pair that are stored; nothing of this machine."""
        file, place = self.store.where(position)
        fields = {"file": file.name, "row": place.row + 1, "text": pair.text}
        return fields if pair.question_id is None else {**fields, "question_id": pair.question_id}


def answer_rows(documents: Documents, answers: Sequence[str]) -> tuple[list[dict], list[str]]:
    """The rows of samples.jsonl of pairs that were answered, and the metrics; none where nothing is known to be right.

    Raises:
        DataError: It is known of some of the pairs alone.
    """
    metric = TASKS[documents.task].metric
    rows, scored = [], 0
    for position, answer in zip(documents.pairs, answers, strict=True):
        pair = documents.store.text(position)
        target = _target(documents.task, pair)
        scored += target is not None
        rows.append(
            {
                "doc_id": position,
                "doc": documents.describe(position, pair),
                "target": target,
                "answer": answer,
                "scores": {} if target is None else {metric: _score(answer, target)},
            }
        )
    if scored not in (0, len(rows)):
        raise DataError(f"{scored} of {len(rows)} pairs say what is right; either all or none must")
    return rows, [metric] if scored else []


def _target(task: str, pair: Pair) -> dict[str, float] | str | None:
    """{answer: how right it is} of a question, the label's name of others; None where it is not known."""
    if pair.scores is not None and pair.answers is not None:
        scores = dict(zip(pair.answers, pair.scores))
        return {normalize_answer(answer): score for answer, score in scores.items()} | scores
    return None if pair.label is None else label_names(task)[pair.label]


def _score(answer: str, target: Mapping[str, float] | str) -> float:
    return float(answer == target) if isinstance(target, str) else vqa_score(answer, target)


def label_names(task: str) -> list[str]:
    """The names of a task's labels, in the order of the head's outputs."""
    return list(LABELS[TASKS[task].pairs])


def retrieval_rows(documents: Documents, ranks: Ranks) -> tuple[list[dict], list[str]]:
    """The rows of all texts, then of all images, and the metrics.

    r_mean, the mean of the six recalls, is a ratio of sums: a document gives the mean of its three hits, weighted so
    that texts and images count alike however many there are.
    """
    positions, image_of_text = documents.texts
    texts, images = len(positions), len(documents.images)
    rows = []
    for number, (position, rank) in enumerate(zip(positions.tolist(), ranks.of_texts.tolist())):
        doc = {**documents.describe(position, documents.store.text(position)), "query": "text"}
        weight = (texts + images) / (2 * texts)
        rows.append(_ranked(number, doc, int(image_of_text[number]), rank, "ir", weight))
    for number, (position, rank) in enumerate(zip(documents.images.tolist(), ranks.of_images.tolist())):
        file, place = documents.store.where(position)
        doc = {"file": file.name, "row": place.row + 1, "query": "image"}
        target = np.flatnonzero(image_of_text == number).tolist()
        rows.append(_ranked(texts + number, doc, target, rank, "tr", (texts + images) / (2 * images)))
    return rows, [*(f"{name}_r{k}" for name in ("ir", "tr") for k in RECALLS), "r_mean"]


def _ranked(number: int, doc: dict, target: int | list[int], rank: int, name: str, weight: float) -> dict:
    hits = {f"{name}_r{k}": float(rank <= k) for k in RECALLS}
    mean = [weight * sum(hits.values()) / len(hits), weight]
    return {"doc_id": number, "doc": doc, "target": target, "answer": str(rank), "scores": {**hits, "r_mean": mean}}


def write_submission(file: Path, documents: Documents, answers: Sequence[str]) -> None:
    """What EvalAI takes of VQAv2's test and test-dev: [{question_id, answer}].

    Raises:
        DataError: A question has no id, or two have the same.
    """
    lines: dict[int | str, str] = {}
    for position, answer in zip(documents.pairs, answers, strict=True):
        pair = documents.store.text(position)
        if pair.question_id is None:
            raise DataError(f"{pair.origin}: has no question_id, without which no answer can be submitted")
        number = int(pair.question_id) if str(pair.question_id).isdigit() else pair.question_id
        if number in lines:
            raise DataError(f"{pair.origin}: question_id {number} is another question's too")
        lines[number] = answer
    with whole_file(file) as stream:
        json.dump([{"question_id": number, "answer": answer} for number, answer in lines.items()], stream)
