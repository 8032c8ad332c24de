"""The digit pages as the bench takes them."""

import pytest

from llava.bench import digit_pages
from llava.bench.entry import CAPTIONS, HELD_OUT, TRAIN, Question
from llava.bench.rows import all_rows
from llava.data.mixture import load_mixture


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages") / "digit_pages"
    digit_pages.make_data(folder, captions=5, samples=30, held_out=10, documents=3)
    return folder


def test_what_is_held_out_is_not_trained_on(folder):
    names = (CAPTIONS, TRAIN, HELD_OUT)
    captions, train, held_out = ({sample.id for sample in load_mixture(folder / name, 0).samples} for name in names)
    assert (len(captions), len(train), len(held_out)) == (5, 30, 10)
    assert not train & held_out
    assert not captions & (train | held_out)


def test_the_questions_of_a_page_are_one_document(folder):
    questions = list(digit_pages.questions(folder))
    assert [(asked.id, asked.document) for asked in questions][:4] == [
        ("0-place", "0"),
        ("0-read", "0"),
        ("1-place", "1"),
        ("1-count", "1"),
    ]
    assert len(questions) == 3 * digit_pages.ENTRY.questions_per_document
    assert all(asked.dialogue.images[0].mode == "RGB" for asked in questions)
    assert all(asked.is_right(f" {asked.answers[0]}\n") and not asked.is_right("none") for asked in questions)


@pytest.mark.parametrize(("answer", "right"), [("Red  Car ", True), ("a car", True), ("red", False), ("", False)])
def test_right_as_the_task_of_the_harness_has_it(answer, right):
    from llava.eval.tasks.digit_pages_utils import process_results

    question = Question("0", "0", "read", ("red car", "A car"), None)
    assert question.is_right(answer) == right
    document = {"answers": list(question.answers), "kind": "read"}
    assert process_results(document, [answer])["exact_match"] == right


def test_sections_are_of_rows_that_there_are():
    assert set(digit_pages.SECTIONS) <= {row.name for row in all_rows()}
