"""`llava data check` of pairs: every row that the splits take, its images and all that is said of its texts."""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

from llava.checkpoint.folder import CONFIG, check_folder
from llava.data.image_folder import ImageFolder
from llava.data.images import image_size, open_image, read_header
from llava.data.inspect import fault_of
from llava.data.mixture import choose_rows
from llava.data.pairs.answers import form_among
from llava.data.pairs.mixture import PairEntry, PairMixture, read_pair_mixture
from llava.data.pairs.processor import PairProcessor, check_tokenizer
from llava.data.pairs.store import PairFile, TextPlace
from llava.data.pairs.tables import open_table
from llava.data.pairs.vocabulary import check_num_answers, load_answers
from llava.data.workers import Workers
from llava.errors import DataError, LlavaError
from llava.files import patiently
from llava.prepare_data.check import CheckOptions
from llava.prepare_data.check_report import BadRow, FileReport
from llava.printable import one_line
from llava.text_files import read_json
from llava.two_tower.parts import MODEL_TYPE
from llava.two_tower.tasks import TASKS

BLOCK = 500  # rows that a process is handed at a time
RowFault = tuple[int, str, str]  # the row, counted from 1, a kind of KINDS, and what is wrong


@dataclass
class _FileFaults:
    """What is wrong with one data file. rows: it holds. taken: are taken. complete: it could be read."""

    rows: int = 0
    taken: int = 0
    complete: bool = True
    bad: list[BadRow] = field(default_factory=list)


def check_pairs(
    path: str | Path, options: CheckOptions, on_bad_row: Callable[[BadRow], None], workers: int | None = None
) -> list[FileReport]:
    """Inspects every row that the mixture's splits take; returns a report for each data set of each split.

    Args:
        path: Of the mixture, or of a data file.
        options: Of images, and the model whose tokenizer and answers must fit.
        on_bad_row: Is given the faults; a file that several splits take is inspected once.
        workers: Processes; one per core by default.

    Raises:
        LlavaError: For a mixture that cannot be read, and a model that does not fit it.
    """
    if not Path(options.image_folder).is_dir():
        raise LlavaError(f"--image_folder {options.image_folder} is not a folder")
    mixture = read_pair_mixture(path)
    vocabulary = _vocabulary(mixture, options.model)
    seen: dict[tuple[Path, str], _FileFaults] = {}
    reports = []
    with Workers(workers or os.cpu_count()) as pool:
        for split, entries in mixture.splits.items():
            for entry in entries:
                report = FileReport(f"{split}: {entry.name}", entry.sampling_strategy, entry.expected_rows)
                for file in entry.files:
                    key = file, entry.sampling_strategy
                    if key not in seen:
                        seen[key] = _check_file(mixture, entry, file, options, vocabulary, pool)
                        for row in seen[key].bad:
                            on_bad_row(row)
                    _add(report, seen[key])
                reports.append(report)
    return reports


def _add(report: FileReport, faults: _FileFaults) -> None:
    report.rows += faults.rows
    report.taken += faults.taken
    report.bad += len({row.row for row in faults.bad if row.row})
    report.counts += Counter(row.kind for row in faults.bad)
    report.complete &= faults.complete


def _check_file(
    mixture: PairMixture,
    entry: PairEntry,
    file: Path,
    options: CheckOptions,
    vocabulary: frozenset[str] | None,
    pool: Workers,
) -> _FileFaults:
    faults = _FileFaults()
    try:
        opened = open_table(file)
        faults.rows = len(opened)
        seed = f"{options.seed}/{file.name}"
        pairs = PairFile(
            opened, mixture.kind, choose_rows(faults.rows, entry.sampling_strategy, seed, str(mixture.file)), entry.name
        )
    except DataError as error:
        faults.complete = False
        faults.bad.append(BadRow(str(file), 0, None, "record", one_line(str(error))))
        return faults
    faults.taken = len(pairs.rows)
    blocks = [pairs.rows[begin : begin + BLOCK] for begin in range(0, faults.taken, BLOCK)]
    tasks = ((PairFile(opened, mixture.kind, rows, entry.name), options, vocabulary) for rows in blocks)
    questions = answered = 0
    for of_rows, num_questions, num_answered in pool.map(inspect_rows, tasks, alone=len(blocks) < 2):
        faults.bad += [BadRow(str(file), row, None, kind, message) for row, kind, message in of_rows]
        questions, answered = questions + num_questions, answered + num_answered
    if questions and not answered and vocabulary is not None:
        message = (
            f"none of the answers to its {questions:,} questions is among the {len(vocabulary):,} of the vocabulary"
        )
        faults.bad.append(BadRow(str(file), 0, None, "record", f"{file}: {message}"))
    return faults


def inspect_rows(
    pairs: PairFile, options: CheckOptions, vocabulary: frozenset[str] | None
) -> tuple[list[RowFault], int, int]:
    """What is wrong with the rows that are taken; how many questions have answers, and how many a known one."""
    faults: list[RowFault] = []
    questions = answered = 0
    for row in pairs.rows.tolist():
        count = len(pairs.texts(row))
        faults += [(row + 1, kind, message) for kind, message in _image_faults(pairs, row, options)]
        if record := pairs.fault(row):
            faults.append((row + 1, "record", record))
        elif not count:
            faults.append((row + 1, "record", f"an image without {pairs.kind.words}"))
        for number in range(count):
            try:
                pair = pairs.pair(TextPlace(row, number), 0, with_images=False)
            except DataError as error:
                faults.append((row + 1, "record", str(error).removeprefix(f"{pairs.file} row {row + 1} ")))
                continue
            if vocabulary is not None and pair.answers is not None:
                questions += 1
                answered += any(form_among(answer, vocabulary) is not None for answer in pair.answers)
    return faults, questions, answered


def _image_faults(pairs: PairFile, row: int, options: CheckOptions) -> Iterator[tuple[str, str]]:
    if pairs.fault(row):
        return
    for name, image in zip(pairs.kind.images, pairs.images(row)):
        try:
            if image is None:
                yield "record", f"a {pairs.kind.words} without image: {name} is empty"
            elif isinstance(image, bytes):
                _look(image, options.decode)
            else:
                folder = ImageFolder.of(options.folder())
                patiently(open_image if options.decode else image_size, folder.file(image))
        except DataError as error:
            yield fault_of(error)


def _look(image: bytes, decode: bool) -> Any:
    return open_image(BytesIO(image), "in the row") if decode else read_header(BytesIO(image), "in the row")


def _vocabulary(mixture: PairMixture, model: str | None) -> frozenset[str] | None:
    """The answers of questions: the model's where one is named, else the mixture's file of them."""
    processor = None if model is None else _fitting_processor(mixture, Path(model))
    if mixture.kind.name != "questions":
        return None
    answers = None
    if mixture.answers is not None:
        answers = load_answers(mixture)
    if processor is not None and processor.answers is not None:
        if answers is not None and answers != processor.answers:
            count = f"{len(answers):,} answers, the model's {len(processor.answers):,}"
            first = next((at for at, (a, b) in enumerate(zip(answers, processor.answers)) if a != b), None)
            where = (
                "" if first is None else f"; first other: {answers[first]!r}, the model's {processor.answers[first]!r}"
            )
            raise DataError(f"{mixture.answers} is another vocabulary than {model}'s: it has {count}{where}")
        answers = processor.answers
    return None if answers is None else frozenset(answers)


def _fitting_processor(mixture: PairMixture, model: Path) -> PairProcessor:
    """The model's processor, once its tokenizer, its answers and its task are seen to fit. Raises LlavaError."""
    check_folder(model, "--model", model_types=(MODEL_TYPE,))
    config = read_json(model / CONFIG)
    task = TASKS[config["task"]]
    if task.pairs != mixture.kind.name:
        raise DataError(f"mixture {mixture.file} holds {mixture.kind.name}, but {model} was trained for {task.title}")
    processor = PairProcessor.from_pretrained(model)
    text: dict[str, Any] = config["text_config"]
    check_tokenizer(processor.tokenizer, text["vocab_size"], text.get("pad_token_id"), f"of {model}")
    if task.num_labels is None:
        check_num_answers(processor.answers or (), config["num_answers"], f"{model}/answers.json", model)
    return processor
