"""Writes emoji pages to disk as pairs, in the form that llava/data/pairs reads: parquet files and their mixtures.

captions.yaml    pages with two captions, for pre-training
questions.yaml   pages with questions and answers, as VQAv2 has them, and answers.json, the vocabulary
statements.yaml  two pages and statements about both, as NLVR2's
entailment.yaml  pages and sentences about them, as SNLI-VE's
retrieval.yaml   pages with two captions, all of names of the part `train`

Each has the splits train, val and test, and retrieval two more: `names`, one drawing a page of every name of the part
`test`, which is its caption; and `drawings`, the same of as many names of the part `train`, drawn by the other font.
"""

import io
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

from llava.data.pairs.answers import normalize_answer
from llava.data.pairs.vocabulary import write_answers
from llava.demo.emoji_pages import (
    PLACES,
    EmojiPage,
    Source,
    captions,
    draw,
    questions,
    sentences,
    statements,
)
from llava.demo.emojis import PARTS, Emojis

Row = dict[str, object]


@dataclass(frozen=True)
class DataSet:
    """What a row holds.

    kind: of llava/data/pairs. make: a row's columns beside `id`, of its generator, the source of its pages and its
    number. known_names: whether held-out pages show names of the part `train` alone.
    """

    kind: str
    make: Callable[[np.random.Generator, Source, int], Row]
    known_names: bool = False


def write_emoji_pages(
    folder: Path, emojis: Emojis, rows: Mapping[str, int], seed: int = 0, names: Collection[str] | None = None
) -> None:
    """Writes data files and mixtures below `folder`; the same for the same fonts, rows and seed.

    Args:
        folder: Where they go.
        emojis: What is drawn.
        rows: Of each data set, by split.
        seed: Of everything drawn, the parts of the names excepted.
        names: The data sets that are written; None for all.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in DATA_SETS if names is None else names:
        data_set = DATA_SETS[name]
        for split in PARTS:
            source = Source(emojis, "train", alone=True) if data_set.known_names else Source(emojis, split)
            _write(
                folder / f"{name}_{split}.parquet",
                (_row(name, data_set, source, split, index, seed) for index in range(rows[split])),
            )
        splits = {split: [{"name": name, "files": f"{name}_{split}.parquet"}] for split in PARTS}
        if name == "retrieval":
            splits |= {split: [{"name": split, "files": f"{split}.parquet"}] for split in ("names", "drawings")}
            _write_single(folder, emojis, seed)
        mixture: dict[str, object] = {"kind": data_set.kind, "splits": splits}
        if name == "questions":
            mixture["answers"] = "answers.json"
            write_answers(folder / "answers.json", possible_answers(emojis))
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(mixture, sort_keys=False))


def possible_answers(emojis: Emojis) -> tuple[str, ...]:
    """Every answer that a question of any split may have, as answers are compared."""
    numbers = [str(number) for number in range(1, len(PLACES) + 1)]
    names = Source(emojis, "train").answers
    return tuple(dict.fromkeys(normalize_answer(answer) for answer in ("yes", "no", *numbers, *PLACES, *names)))


def _row(name: str, data_set: DataSet, source: Source, split: str, index: int, seed: int) -> Row:
    return {"id": f"{name}/{split}/{index}"} | data_set.make(rng_for(seed, name, split, index), source, index)


def _write_single(folder: Path, emojis: Emojis, seed: int) -> None:
    """The splits `names` and `drawings` of retrieval."""
    held_out = emojis.parts["test"]
    for split, names, style in (
        ("names", held_out, "openmoji"),
        ("drawings", emojis.parts["train"][: len(held_out)], "noto"),
    ):
        rows = (_single(rng_for(seed, split, "test", index), emojis, name, style) for index, name in enumerate(names))
        _write(folder / f"{split}.parquet", rows)


def rng_for(seed: int, name: str, split: str, index: int) -> np.random.Generator:
    """The generator of one row of a data set."""
    return np.random.default_rng([seed, index, list(PARTS).index(split), *name.encode()])


def _single(rng: np.random.Generator, emojis: Emojis, name: str, style: str) -> Row:
    page = EmojiPage({int(rng.integers(9)): name}, style)
    return {"id": name, "image": _png(rng, page, emojis), "caption": [name]}


def _captions(rng: np.random.Generator, source: Source, index: int) -> Row:
    page = source.compose(rng)
    return {"image": _png(rng, page, source.emojis), "caption": captions(rng, page)}


def _questions(rng: np.random.Generator, source: Source, index: int) -> Row:
    page = source.compose(rng)
    page_questions = questions(rng, page, source)
    return {
        "image": _png(rng, page, source.emojis),
        "questions": [question.text for question in page_questions],
        "answers": [[question.answer] for question in page_questions],
        "question_id": [f"{index}-{question.kind}" for question in page_questions],
    }


def _statements(rng: np.random.Generator, source: Source, index: int) -> Row:
    left, right = source.compose_pair(rng)
    said = statements(rng, left, right, source)
    return {
        "image_0": _png(rng, left, source.emojis),
        "image_1": _png(rng, right, source.emojis),
        "questions": [statement.text for statement in said],
        "answers": [str(statement.true) for statement in said],
        "question_id": [f"{index}-{statement.kind}" for statement in said],
    }


def _entailment(rng: np.random.Generator, source: Source, index: int) -> Row:
    page = source.compose(rng)
    said = sentences(rng, page, source)
    premise = captions(rng, page)[0]
    return {
        "image": _png(rng, page, source.emojis),
        "sentences": [[premise, sentence.text] for sentence in said],
        "labels": [sentence.label for sentence in said],
    }


DATA_SETS = {
    "captions": DataSet("captions", _captions),
    "questions": DataSet("questions", _questions),
    "statements": DataSet("statements", _statements),
    "entailment": DataSet("entailment", _entailment),
    "retrieval": DataSet("captions", _captions, known_names=True),
}


def _png(rng: np.random.Generator, page: EmojiPage, emojis: Emojis) -> bytes:
    file = io.BytesIO()
    draw(rng, page, emojis).save(file, "PNG", compress_level=1)
    return file.getvalue()


def _write(file: Path, rows: Iterator[Row]) -> None:
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(list(rows)), file)
