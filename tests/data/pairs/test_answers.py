import json

import pytest

from llava.data.pairs.answers import build_vocabulary, normalize_answer, score_answers
from tests.paths import TWO_TOWER_GOLDEN_DIR

GOLDEN = json.loads((TWO_TOWER_GOLDEN_DIR / "extras.json").read_text())


def test_answers_are_normalised_as_the_reference_does():
    cases = GOLDEN["normalize_word"]
    assert {answer: normalize_answer(answer) for answer in cases} == cases
    assert len(cases) > 60


@pytest.mark.parametrize(("count", "score"), [(1, "1"), (2, "2"), (3, "3"), (4, ">=4"), (10, ">=4")])
def test_scores_by_how_many_people_gave_an_answer(count, score):
    answers, scores = score_answers(["Two"] * count + ["a cat"] * 10)
    assert (answers, scores) == (["2", "cat"], [GOLDEN["get_score"][score], 1.0])


def test_a_single_answer_is_right():
    assert score_answers(["The red"]) == (["red"], [1.0])


def test_the_vocabulary_is_in_the_order_of_first_occurrence():
    assert build_vocabulary(["no", "yes", "rare", "Yes.", "no", "a yes"], least_count=2) == ("no", "yes")
    assert build_vocabulary(["yes"] * 9 + ["no"] * 8) == ("yes",)
