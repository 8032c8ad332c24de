"""What the tasks read of a document, and documents that cannot be asked or scored: named before any model is loaded.

lmms-eval would score some of them 0, show "None" to the model or end in a traceback once all answers are in.
"""

import ast
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pyarrow
from datasets import Dataset, Image, List

from llava.errors import LlavaError
from llava.eval.kinds import OCR_KINDS

BATCH = 1000  # documents looked at together
SHOWN = 60  # characters of a value in a message


class Rule(NamedTuple):
    """needed: in words. holds: of a value and its document; of an image only whether there is one is known."""

    needed: str
    holds: Callable[[object, dict], bool]


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _are_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(entry, str) for entry in value) and any(map(_is_text, value))


def _are_votes(value: object) -> bool:
    return isinstance(value, list) and _are_texts([vote and vote.get("answer") for vote in value])


def _is_index(value: object, options: object) -> bool:
    return str(value).isdecimal() and isinstance(options, list) and int(str(value)) < len(options)


def _are_options(value: object, doc: dict) -> bool:
    """MMMU writes the list as a text."""
    try:
        options = ast.literal_eval(value)
    except (ValueError, SyntaxError, TypeError):
        return False
    return isinstance(options, list) and (bool(options) or doc["question_type"] != "multiple-choice")


def _has_images(value: object, doc: dict) -> bool:
    """MMMU's texts name the images that they are about."""
    named = re.findall(r"<image ([1-7])>", f"{value} {doc['options']}")
    return _is_text(value) and all(doc.get(f"image_{number}") for number in named)


def _one_of(*choices: str) -> Rule:
    return Rule(f"one of {', '.join(choices)}", lambda value, _: value in choices)


ANY_TEXT = Rule("a text", lambda value, _: isinstance(value, str))
TEXT = Rule("a text that is not empty", lambda value, _: _is_text(value))
TEXTS = Rule("texts, at least one that is not empty", lambda value, _: _are_texts(value))
VOTES = Rule('a list of {"answer": text}', lambda value, _: _are_votes(value))
CONTEXT = Rule("a text or texts", lambda value, _: isinstance(value, str) or _are_texts(value))
OCR_ANSWER = Rule(  # what is empty is found in every answer
    "a text or texts that are not empty",
    lambda value, _: _is_text(value) or (_are_texts(value) and all(map(_is_text, value))),
)
IMAGE = Rule("an image", lambda value, _: bool(value))
IMAGES = Rule("images", lambda value, _: bool(value) and all(value))
OPTION = Rule("the number of one of the options", lambda value, doc: _is_index(value, doc["options"]))
CHOICE = Rule("the number of one of the choices", lambda value, doc: _is_index(value, doc["choices"]))
CHOICES = Rule("texts", lambda value, doc: _are_texts(value) or (not value and doc["question_type"] != "multi_choice"))

ASKED = {"question": TEXT, "image": IMAGE}
LIVE = {"question": TEXT, "images": IMAGES}, {"answer": TEXT, "criteria": ANY_TEXT}
# task -> what it asks with, and what it scores with besides
FIELDS: dict[str, tuple[dict[str, Rule], dict[str, Rule]]] = {
    "digit_pages": (ASKED, {"answers": TEXTS, "kind": _one_of("place", "read", "count", "compare")}),
    "text_pages": (
        ASKED,
        {"answers": TEXTS, "kind": _one_of("after", "first", "last", "heading", "number", "lines")},
    ),
    "vqav2_val": (ASKED, {"answers": VOTES}),
    "ok_vqa_val2014": (ASKED, {"answers": TEXTS}),
    "gqa": (ASKED, {"answer": TEXT}),
    "mmvet": (ASKED, {"answer": TEXT}),
    "seedbench": (
        {"question": TEXT, "image": IMAGES, **{f"choice_{letter}": ANY_TEXT for letter in "abcd"}},
        {"answer": _one_of(*"ABCD"), "data_type": _one_of("image", "video")},
    ),
    "realworldqa": (ASKED, {"answer": TEXT}),
    "textvqa_val": (ASKED, {"answers": TEXTS}),
    "chartqa": (ASKED, {"answer": TEXT, "type": TEXT}),
    "docvqa_val": (ASKED, {"answers": TEXTS}),
    "infovqa_val": (ASKED, {"answers": TEXTS}),
    "ocrbench": (ASKED, {"answer": OCR_ANSWER, "dataset": ANY_TEXT, "question_type": _one_of(*OCR_KINDS)}),
    "ai2d": ({**ASKED, "options": TEXTS}, {"answer": OPTION}),
    "scienceqa_img": ({**ASKED, "choices": TEXTS, "hint": ANY_TEXT}, {"answer": CHOICE}),
    "mmmu_val": (
        {
            "image_1": IMAGE,
            "question": Rule("a text, and the images that it and the options name", _has_images),
            "question_type": TEXT,
            "options": Rule("a list, written as a text", _are_options),
        },
        {"answer": TEXT, "id": Rule("like validation_Art_1", lambda value, _: str(value).count("_") >= 2)},
    ),
    "mathvista_testmini_format": (
        {
            "question": TEXT,
            "decoded_image": IMAGE,
            "question_type": _one_of("multi_choice", "free_form"),
            "answer_type": _one_of("text", "integer", "float", "list"),
            "choices": CHOICES,
        },
        {"answer": TEXT, "query": TEXT},
    ),
    "dc100_en": (ASKED, {}),
    "live_bench_2407": LIVE,
    "live_bench_2409": LIVE,
    "llava_in_the_wild": (
        ASKED,
        {"gpt_answer": TEXT, "caption": CONTEXT, "category": _one_of("conv", "detail", "complex")},
    ),
    "llava_wilder_small": ({"Question": TEXT, "image": IMAGE}, {"Answer": TEXT}),
}


def check_documents(task: str, place: str, documents: Dataset, limit: int | None, scores: bool) -> None:
    """Raises LlavaError when there are no documents, a column is missing, or a document lacks what the task reads.

    limit: only the first documents are asked. scores: whether they are also scored.
    """
    count = min(len(documents), limit or len(documents))
    if not count:
        raise LlavaError(f"task {task}: {place} has no documents")
    to_ask, to_score = FIELDS.get(task, ({}, {}))  # what other tasks read, only their own functions know
    rules = {**to_ask, **(to_score if scores else {})}
    if missing := [field for field in rules if field not in documents.column_names]:
        columns = ", ".join(documents.column_names)
        raise LlavaError(f"task {task}: {place} has no column {', '.join(map(repr, missing))} (found: {columns})")
    faults = []
    for number, doc in enumerate(_documents(documents, count)):
        wrong = next((field for field, rule in rules.items() if not rule.holds(doc[field], doc)), None)
        if wrong is not None:
            shown = "null" if doc[wrong] is None else _shown(documents, wrong, doc[wrong])
            faults.append(f"{task} document {number}: {wrong!r} is {shown}, needed: {rules[wrong].needed}")
    if faults:
        done = "asked and scored" if scores else "asked"
        raise LlavaError(f"{faults[0]} ({len(faults)} of {count} documents cannot be {done}; the model was not loaded)")


def _shown(documents: Dataset, column: str, value: object) -> str:
    if _depth(documents.features[column]) is not None:
        return "a list without images or with a null"
    text = repr(value)
    return text if len(text) <= SHOWN else text[:SHOWN] + "..."


def _documents(documents: Dataset, count: int) -> Iterator[dict]:
    """The first documents; an image, which is not decoded, is True where it is not null."""
    plain = documents.with_format("arrow")
    for start in range(0, count, BATCH):
        table = plain[start : min(start + BATCH, count)]
        columns = {}
        for name in table.column_names:
            depth = _depth(documents.features[name])
            column = table.column(name)
            columns[name] = column.to_pylist() if depth is None else [_present(value, depth) for value in column]
        for values in zip(*columns.values(), strict=True):
            yield dict(zip(columns, values, strict=True))


def _depth(feature: Any) -> int | None:
    """0 for an image, 1 for a list of them, None for anything else."""
    if isinstance(feature, Image):
        return 0
    return 1 if isinstance(feature, List) and isinstance(feature.feature, Image) else None


def _present(value: pyarrow.Scalar, depth: int) -> bool | list | None:
    if not value.is_valid:
        return None
    if depth:
        return [_present(entry, 0) for entry in value.values]
    return True if any(value[part].is_valid for part in ("bytes", "path")) else None
