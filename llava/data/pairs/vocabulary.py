"""The answers that a head of questions chooses from: one for each of its outputs."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llava.data.pairs.answers import LEAST_COUNT, build_vocabulary, normalize_answer
from llava.data.pairs.mixture import PairMixture
from llava.data.pairs.tables import PairTable, open_table
from llava.errors import DataError
from llava.printable import brief
from llava.text_files import read_text

FILE = "answers.json"  # in a model folder


def load_answers(mixture: PairMixture, least_count: int = LEAST_COUNT) -> tuple[str, ...]:
    """The vocabulary of a mixture of questions.

    It is the file that the mixture names as `answers`; else what the columns answers and answer_labels of its files say
    (ViLT's); else the answers that are the best one of at least `least_count` questions, in the order of their first
    occurrence, of every split that has answers.

    Raises:
        DataError: It is no vocabulary, or the files disagree.
    """
    if mixture.answers is not None:
        return read_answers(mixture.answers)
    files = dict.fromkeys(file for entries in mixture.splits.values() for entry in entries for file in entry.files)
    tables = [opened for file in files if (opened := open_table(file)).column("answers") is not None]
    labelled = [opened for opened in tables if opened.column("answer_labels") is not None]
    if labelled:
        return _labelled_answers(labelled)
    answers = build_vocabulary((best for opened in tables for best in _best_answers(opened)), least_count)
    if not answers:
        raise DataError(f"mixture {mixture.file}: no answer is the best one of at least {least_count} questions")
    return answers


def read_answers(file: Path) -> tuple[str, ...]:
    """A vocabulary from a JSON file: a list of answers, or {answer: number}, the numbers from 0 on."""
    try:
        content = json.loads(read_text(file))
    except OSError as error:
        raise DataError(f"answers {file} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise DataError(f"answers {file} cannot be read: {error}") from None
    except RecursionError:
        raise DataError(f"answers {file} cannot be read: nested too deeply") from None
    if isinstance(content, dict):
        if sorted(content.values(), key=str) != sorted(range(len(content)), key=str):
            raise DataError(f"answers {file}: {len(content)} answers whose numbers are not 0 to {len(content) - 1}")
        content = sorted(content, key=content.__getitem__)
    texts = isinstance(content, list) and all(isinstance(answer, str) for answer in content)
    if not texts or not content or len(set(content)) < len(content):
        raise DataError(f"answers {file} must be a list of different texts, found {brief(content)}")
    return tuple(content)


def write_answers(file: Path, answers: tuple[str, ...]) -> None:
    """Writes what read_answers reads."""
    file.write_text(json.dumps(list(answers), ensure_ascii=False, indent=0) + "\n", encoding="utf-8")


def check_num_answers(answers: tuple[str, ...], num_answers: int, vocabulary: object, head: object) -> None:
    """Raises DataError unless a vocabulary has as many answers as a head outputs. vocabulary, head: where they are."""
    if len(answers) != num_answers:
        raise DataError(f"{vocabulary} has {len(answers):,} answers, but the head of {head} has {num_answers:,}")


def _labelled_answers(tables: list[PairTable]) -> tuple[str, ...]:
    """By the columns' own arrays, since there are millions of answers."""
    answers: dict[int, str] = {}
    for opened in tables:
        texts, labels = (_flat(opened.table.column(name)) for name in ("answers", "answer_labels"))
        if len(texts) != len(labels):
            raise DataError(f"data file {opened.file}: {len(labels):,} answer_labels for {len(texts):,} answers")
        numbers = np.asarray(labels)
        for label, place in zip(*(array.tolist() for array in np.unique(numbers, return_index=True))):
            text = texts[place].as_py()
            if answers.setdefault(label, text) != text:
                raise DataError(
                    f"data file {opened.file}: answer_label {label} is {text!r}, elsewhere {answers[label]!r}"
                )
        codes = np.asarray(texts.dictionary_encode().indices)
        pairs = np.unique(np.stack([numbers, codes], 1), axis=0)
        if len({len(pairs), len(np.unique(codes)), len(np.unique(numbers))}) > 1:
            raise DataError(f"data file {opened.file}: an answer has several answer_labels, or a label several answers")
    missing = sorted(set(range(max(answers, default=-1) + 1)) - set(answers))
    if missing:
        raise DataError(
            f"{tables[0].file} and {len(tables) - 1} more files have no answer of label {missing[0]} "
            f"({len(missing)} of {max(answers) + 1}); name the vocabulary as `answers` in the mixture"
        )
    return tuple(answers[label] for label in range(len(answers)))


def _flat(column: pa.ChunkedArray) -> pa.Array:
    while pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        column = pc.list_flatten(column)
    return column.combine_chunks()


def _best_answers(opened: PairTable) -> list[str]:
    """The answer of each question that most people gave, the first of several."""
    best = []
    for value in opened.table.column("answers").to_pylist():
        of_row = value or []
        lists = [of_row] if isinstance(of_row, str) or (of_row and isinstance(of_row[0], str)) else of_row
        for of_one in lists:
            if of_one:
                counts = Counter(map(normalize_answer, [of_one] if isinstance(of_one, str) else of_one))
                best.append(counts.most_common(1)[0][0])
    return best
