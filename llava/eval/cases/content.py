"""What is told of a case: question, what is expected, the answers, and its other fields. All of it as plain text."""

import json
from collections.abc import Mapping
from dataclasses import dataclass

from llava.eval.cases.choose import Answer, Choice, TaskCases
from llava.printable import visible

QUESTIONS = ("question", "Question", "query")  # the field that asks
LONGEST = 2000  # characters of a text; what is longer is cut


@dataclass(frozen=True)
class ToldAnswer:
    """verdict: right, wrong or none."""

    run: str
    text: str
    score: str
    verdict: str


@dataclass(frozen=True)
class Case:
    """name: of the task, as the paper has it. kinds: of question. fields: (name, value) of the others."""

    task: str
    name: str
    doc_id: int
    question: str
    expected: str
    kinds: list[str]
    fields: list[tuple[str, str]]
    answers: list[ToldAnswer]


def told(cases: TaskCases, choice: Choice, document: Mapping, kinds: list[str]) -> Case:
    """The case in words. document: its fields but for the images. kinds: of its question."""
    question = next((field for field in QUESTIONS if isinstance(document.get(field), str)), None)
    return Case(
        task=cases.task,
        name=cases.name,
        doc_id=choice.doc_id,
        question=_cut(document[question]) if question else "(its documents have no field question)",
        expected=_expected(choice.row.get("target")),
        kinds=[_cut(kind) for kind in kinds],
        fields=[(visible(field), _cut(_words(value))) for field, value in document.items() if field != question],
        answers=[_answer(answer, cases.metric) for answer in choice.answers],
    )


def _answer(answer: Answer, metric: str) -> ToldAnswer:
    verdict = "none" if answer.right is None else "right" if answer.right else "wrong"
    score = answer.score if answer.share is None else f"{metric} {answer.score}"
    return ToldAnswer(answer.run, _cut(answer.text), score, verdict)


def _expected(target: object) -> str:
    """What is accepted; several answers with bars between."""
    if isinstance(target, list):
        return _cut(" | ".join(dict.fromkeys(map(_words, target))))
    return _cut(_words(target))


def _words(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _cut(text: str) -> str:
    text = visible(text)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} ... ({len(text):,} characters)"
