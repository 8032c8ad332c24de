"""Kinds of questions: what a field of the documents says, by which a report and a page of cases part them.

A document may have several kinds (DocVQA's question_types) and counts in each of them. Imports nothing heavy.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from llava.arguments import did_you_mean, nearest, shown
from llava.errors import LlavaError

KIND = "kind"  # also stands for the field of FIELDS, where a benchmark's documents have none of this name
NO_KIND = "(none)"  # of documents whose field is empty
MOST = 200  # kinds of a task; a field with more is rather an identifier
FIELDS = {
    "seedbench": "question_type_id",
    "chartqa": "type",
    "docvqa_val": "question_types",
    "infovqa_val": "answer_type",
    "ocrbench": "question_type",
    "live_bench_2407": "subtask",
    "live_bench_2409": "subtask",
    "llava_in_the_wild": "category",
}
OCR_KINDS = (
    "Regular Text Recognition", "Irregular Text Recognition", "Artistic Text Recognition", "Handwriting Recognition",
    "Digit String Recognition", "Non-Semantic Text Recognition", "Scene Text-centric VQA", "Doc-oriented VQA",
    "Key Information Extraction", "Handwritten Mathematical Expression Recognition",
)  # fmt: skip
DOCUMENT_KINDS = (
    "figure/diagram", "layout", "table/list", "form", "free_text", "handwritten", "yes/no", "image/photo", "others",
)  # fmt: skip
# The names of SEED-Bench's question_type_id, from 1, for data that do not tell them.
DIMENSIONS = (
    "Scene Understanding", "Instance Identity", "Instance Attributes", "Instance Location", "Instances Counting",
    "Spatial Relation", "Instance Interaction", "Visual Reasoning", "Text Understanding", "Action Recognition",
    "Action Prediction", "Procedure Understanding",
)  # fmt: skip
NAMES = {("seedbench", "question_type_id"): {str(number): name for number, name in enumerate(DIMENSIONS, start=1)}}
# The order in which the paper's figures have them, in lower case.
ORDERS = {
    ("docvqa_val", "question_types"): DOCUMENT_KINDS,
    ("ocrbench", "question_type"): tuple(map(str.lower, OCR_KINDS)),
    ("seedbench", "question_type_id"): tuple(map(str.lower, DIMENSIONS)),
}


@dataclass(frozen=True)
class Kinds:
    """What documents are of. field: as the documents name it. of_document: the kinds of each. names: all, in order."""

    field: str
    of_document: list[list[str]]
    names: list[str]


def read_kinds(task: str, field: str, documents: Sequence[Mapping]) -> Kinds | None:
    """The kinds that a field tells; None where no document has it.

    Args:
        task: whose documents these are.
        field: a field's name, `field.part` for a part of one, or KIND.
        documents: their fields.

    Raises:
        LlavaError: when the field has parts, or more values than kinds can have.
    """
    field = _field_of(task, field, documents)
    values = [_value(document, field) for document in documents]
    if all(value is _ABSENT for value in values):
        return None
    names = _names(task, field, documents, values)
    of_document = []
    for number, value in enumerate(values):
        entries = value if isinstance(value, list) else [value]
        if parts := next((entry for entry in entries if isinstance(entry, dict | list)), None):
            inside = f"; name a part: {', '.join(f'{field}.{key}' for key in parts)}" if isinstance(parts, dict) else ""
            raise LlavaError(f"{task} document {number}: field {field!r} holds {type(parts).__name__}s{inside}")
        texts = [_text(entry) for entry in entries]
        of_document.append(list(dict.fromkeys(names.get(text, text) for text in texts if text)) or [NO_KIND])
    every = list(dict.fromkeys(kind for kinds in of_document for kind in kinds))
    if len(every) > MOST:
        raise LlavaError(f"{task}: field {field!r} has {len(every)} values; kinds are at most {MOST}")
    return Kinds(field, of_document, _in_order(task, field, every, names))


def field_names(documents: Iterable[Mapping]) -> list[str]:
    """The fields that documents have, of those with parts the parts."""
    names: dict[str, None] = {}
    for document in documents:
        for field, value in document.items():
            names |= dict.fromkeys([f"{field}.{part}" for part in value] if isinstance(value, dict) else [field])
    return list(names)


def no_such_field(field: str, fields: Mapping[str, Sequence[str]]) -> str:
    """The message about a field that no task has. fields: task -> those that there are."""
    meant = nearest(field, dict.fromkeys(name for names in fields.values() for name in names))
    listed = "; ".join(f"{task} has {', '.join(names) or 'none'}" for task, names in fields.items())
    return f"no document has a field {shown(field)}{did_you_mean(meant)} ({listed})"


class _Absent:
    """What a document has where it has no such field; null is a value."""


_ABSENT = _Absent()


def _field_of(task: str, field: str, documents: Sequence[Mapping]) -> str:
    if field == KIND and task in FIELDS and not any(KIND in document for document in documents):
        return FIELDS[task]
    return field


def _value(document: Mapping, field: str) -> object:
    if field in document:
        return document[field]
    outer, _, inner = field.partition(".")
    parts = document.get(outer)
    return _value(parts, inner) if inner and isinstance(parts, dict) else _ABSENT


def _text(value: object) -> str:
    if value is None or value is _ABSENT:
        return ""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip()


def _names(task: str, field: str, documents: Sequence[Mapping], values: Sequence[object]) -> dict[str, str]:
    """What numbers are called: by the field beside them, `kind` beside `kind_id`, else by what we know of the task."""
    beside = field.removesuffix("_id")
    given: dict[str, str] = {}
    if beside != field:
        for document, value in zip(documents, values, strict=True):
            name = document.get(beside)
            if isinstance(name, str) and name.strip() and given.setdefault(_text(value), name.strip()) != name.strip():
                return NAMES.get((task, field), {})  # it tells something else
    return NAMES.get((task, field), {}) | given


def _in_order(task: str, field: str, kinds: Iterable[str], names: Mapping[str, str]) -> list[str]:
    """As the paper's figures have them, else by number or alphabet; the empty last."""
    order = {name: place for place, name in enumerate(ORDERS.get((task, field), ()))}
    numbers = {name: int(number) for number, name in names.items() if number.isdecimal()}

    def place(kind: str) -> tuple:
        number = int(kind) if kind.isdecimal() else numbers.get(kind, 0)
        return kind == NO_KIND, order.get(kind.lower(), len(order)), number, kind.lower()

    return sorted(kinds, key=place)
