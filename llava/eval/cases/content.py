"""What is said of a case: question, what is expected, the answers, and its other fields. All of it as plain text."""

import json
from collections.abc import Mapping
from dataclasses import dataclass

from llava.eval.cases.choose import Answer, Choice, TaskCases
from llava.printable import visible

QUESTIONS = ("question", "Question", "query")  # the field that asks
OPTIONS = ("options", "choices")  # that name what may be answered
LETTERS = "ABCDEFGH"
LONGEST = 2000  # characters of a text; what is longer is cut


@dataclass(frozen=True)
class AnswerText:
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
    answers: list[AnswerText]


def case_of(cases: TaskCases, choice: Choice, document: Mapping, kinds: list[str]) -> Case:
    """The case in words. document: its fields but for the images. kinds: of its question."""
    question = next((field for field in QUESTIONS if isinstance(document.get(field), str)), None)
    wording = document[question] if question else "(its documents have no field question)"
    return Case(
        task=cases.task,
        name=cases.name,
        doc_id=choice.doc_id,
        question=_cut("\n".join([wording, *_options(document)])),
        expected=_expected(choice.row.get("target")),
        kinds=[_cut(kind) for kind in kinds],
        fields=[(visible(field), _cut(_words(value))) for field, value in document.items() if field != question],
        answers=[_answer(answer, cases.metric) for answer in choice.answers],
    )


def _options(document: Mapping) -> list[str]:
    """What may be answered, a line each, where the fields tell: SEED-Bench has a field for each letter."""
    lettered = [document.get(f"choice_{letter.lower()}") for letter in LETTERS]
    lists = [document[field] for field in OPTIONS if isinstance(document.get(field), list)]
    options = lists[0] if lists else [option for option in lettered if option is not None]
    return [f"{letter}. {_words(option)}" for letter, option in zip(LETTERS, options, strict=False)]


def _answer(answer: Answer, metric: str) -> AnswerText:
    verdict = "none" if answer.right is None else "right" if answer.right else "wrong"
    score = answer.score if answer.share is None else f"{metric} {answer.score}"
    return AnswerText(answer.run, _cut(answer.text), score, verdict)


def _expected(target: object) -> str:
    """What is accepted; several answers with bars between."""
    if isinstance(target, list):
        return _cut(" | ".join(dict.fromkeys(map(_words, target))))
    return _cut(_words(target))


def _words(value: object) -> str:
    if isinstance(value, dict) and isinstance(value.get("answer"), str):  # one of VQA's annotators
        return value["answer"]
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _cut(text: str) -> str:
    text = visible(text)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} ... ({len(text):,} characters)"
