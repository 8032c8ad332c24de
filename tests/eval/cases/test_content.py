"""What is said of a case."""

import pytest

from llava.eval.cases.choose import Choice, TaskCases
from llava.eval.cases.content import case_of


def case(document, target):
    return case_of(TaskCases("any", "Any", "exact_match", {}, 1, []), Choice(0, {"target": target}, []), document, [])


@pytest.mark.parametrize(
    ("document", "question"),
    [
        ({"question": "Which?", "choice_b": "two", "choice_a": "one"}, "Which?\nA. one\nB. two"),
        ({"question": "Which?", "options": ["one", "two"]}, "Which?\nA. one\nB. two"),
        ({"Question": "Which?", "choices": None}, "Which?"),
        ({"text": "Which?"}, "(its documents have no field question)"),
    ],
)
def test_the_question_with_what_may_be_answered(document, question):
    assert case(document, "A").question == question


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("A", "A"),
        (2, "2"),
        (["a", "b", "a"], "a | b"),
        ([{"answer": "yes", "answer_id": 1}, {"answer": "yes", "answer_id": 2}, {"answer": "no"}], "yes | no"),
        (None, "null"),
    ],
)
def test_what_is_expected(target, expected):
    assert case({"question": "?"}, target).expected == expected
