"""Which tokens are the question about an image: spans by hand, and texts of whole batches."""

from types import SimpleNamespace

import pytest
import torch

from llava.data.schema import Turn
from llava.fusion.configs.manager import ManagerConfig
from llava.fusion.question_spans import TurnMarks, question_positions
from llava.mllm.questions import questions_of_batch, sequences_of_batch

START, END, NEWLINE, IMAGE = 1, 2, 3, 9
MARKS = TurnMarks(START, END, NEWLINE)

#        0      1   2        3  4    5      6   7        8      9      10 11  12
TURNS = [START, 7, NEWLINE, 5, END, START, 7, NEWLINE, IMAGE, IMAGE, 6, 8, END]


def test_the_question_is_the_text_of_the_images_turn():
    assert question_positions(TURNS, [(8, 2)], "turn", MARKS, {IMAGE}) == [[10, 11]]


def test_without_turns_there_is_no_question():
    assert question_positions([IMAGE, IMAGE, 5, 6], [(0, 2)], "turn", MARKS, {IMAGE}) == [[]]


def test_each_image_has_the_question_of_its_own_turn():
    ids = [START, 7, NEWLINE, IMAGE, 5, END, START, 7, NEWLINE, IMAGE, 6, END]
    assert question_positions(ids, [(3, 1), (9, 1)], "turn", MARKS, {IMAGE}) == [[4], [10]]


def test_text_that_begins_with_a_newline_may_share_its_token_with_the_role():
    ids = [START, 7, 33, 5, IMAGE, 6, END, NEWLINE]  # 33: two newlines
    assert question_positions(ids, [(4, 1)], "turn", MARKS, {IMAGE}) == [[2, 3, 5]]


SYSTEM = [START, 7, NEWLINE, 5, END, NEWLINE]
ANSWER = [START, 7, NEWLINE, 5, 5, END, NEWLINE]


def user(*text: int) -> list[int]:
    return [START, 7, NEWLINE, *text, END, NEWLINE]


def asked(ids: list[int], rule: str) -> list[list[int]]:
    """The tokens of each image's question; an image is a run of placeholders."""
    begins = [place for place, token in enumerate(ids) if token == IMAGE and ids[place - 1 : place] != [IMAGE]]
    lengths = [next(n for n in range(1, 99) if ids[begin + n : begin + n + 1] != [IMAGE]) for begin in begins]
    found = question_positions(ids, list(zip(begins, lengths)), rule, MARKS, {IMAGE})
    return [[ids[place] for place in places] for places in found]


@pytest.mark.parametrize(
    ("ids", "turn", "released"),
    [
        # Between turn and image, and image and turn's end: `released` leaves out the token beside the image.
        (SYSTEM + user(11, 12, IMAGE, IMAGE, 13, 14) + ANSWER, [11, 12, 13, 14], [11, 14]),
        (SYSTEM + user(IMAGE, IMAGE, 13, 14) + ANSWER, [13, 14], [14]),
        (SYSTEM + user(11, 12, IMAGE, IMAGE), [11, 12], [11]),
        (SYSTEM + user(IMAGE, IMAGE) + ANSWER, [], []),
        # With the answer still to come, or a further turn behind it.
        (SYSTEM + user(IMAGE, IMAGE, 13, 14) + [START, 7, NEWLINE], [13, 14], [14]),
        (SYSTEM + user(IMAGE, IMAGE, 13, 14) + ANSWER + user(15, 16) + ANSWER, [13, 14], [14]),
        # The plain template: the caption is `released`'s question, without its closing newline.
        ([IMAGE, IMAGE, 13, 14, NEWLINE], [], [13, 14]),
    ],
)
def test_the_two_rules_on_one_image(ids, turn, released):
    assert asked(ids, "turn") == [turn]
    assert asked(ids, "released") == [released]


def test_several_images_of_one_turn():
    ids = SYSTEM + user(11, 12, IMAGE, IMAGE, 13, IMAGE, 14, 15) + ANSWER
    assert asked(ids, "turn") == [[11, 12, 13, 14, 15]] * 2
    assert asked(ids, "released") == [[11, 15]] * 2


def test_an_image_in_a_later_turn():
    """`released` takes the first user turn and what lies between it and the image (golden: f_*_imgsecondturn)."""
    ids = SYSTEM + user(21, 22) + ANSWER + user(IMAGE, IMAGE, 13, 14) + ANSWER
    assert asked(ids, "turn") == [[13, 14]]
    assert asked(ids, "released") == [[21, 22, END, NEWLINE, *ANSWER, START, 7]]


@pytest.mark.parametrize("rule", ["turn", "released"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_does_not_move_a_question(rule, side):
    rows = [
        SYSTEM + user(11, 12, IMAGE, IMAGE, 13, 14) + ANSWER,
        SYSTEM + user(15) + ANSWER,
        SYSTEM + user(IMAGE, 13, IMAGE, IMAGE, 14, 15, 16, 17) + ANSWER,
        SYSTEM + user(IMAGE, IMAGE) + ANSWER,
    ]
    length = max(map(len, rows)) + 2
    pads = [[0] * (length - len(row)) for row in rows]
    padded = [pad + row if side == "left" else row + pad for row, pad in zip(rows, pads)]
    input_ids = torch.tensor(padded)
    positions = (input_ids.flatten() == IMAGE).nonzero()[:, 0]
    config = SimpleNamespace(
        image_token_id=IMAGE,
        video_token_id=10,
        turn_start_token_id=START,
        turn_end_token_id=END,
        newline_token_id=NEWLINE,
    )
    sequences = sequences_of_batch(input_ids, (input_ids != 0).long(), None, None)
    found = questions_of_batch(input_ids, sequences, positions, [2, 1, 2, 2], rule, config)
    expected = [question for row in rows for question in asked(row, rule)]
    assert [input_ids.flatten()[question].tolist() for question in found] == expected
    for question, row in zip(found, (0, 2, 2, 3)):
        assert all(place // length == row for place in question.tolist())


def test_texts_of_a_left_padded_batch(make_model, make_processor, make_image):
    """From the dialogue through the template: system turn, earlier turns, several images, and an image without text."""
    images = [make_image(40 + 30 * index, 56, index) for index in range(6)]
    later = (Turn("human", "<image>\nHi"), Turn("gpt", "Yes."), Turn("human", "A car?\n<image>"))
    dialogues = [
        ((Turn("human", "<image>\nWhat is in the picture?"),), images[:1]),
        ((Turn("system", "Be brief."), Turn("human", "Look: <image> <image>\nWhich?")), images[1:3]),
        ((Turn("human", "What is it?"),), []),
        (later, images[3:5]),
        ((Turn("human", "<image>"),), images[5:]),
    ]
    processor = make_processor()
    config = make_model(fusion=ManagerConfig(interval=2, query="last")).config
    inputs = processor.encode_prompts(dialogues)
    ids = inputs["input_ids"]
    counts = [len(of_dialogue) for _, of_dialogue in dialogues]
    lengths = [
        processor.image_processor.layout(image.size, count > 1).num_tokens
        for (_, of_dialogue), count in zip(dialogues, counts)
        for image in of_dialogue
    ]
    positions = (ids.flatten() == config.image_token_id).nonzero()[:, 0]
    sequences = sequences_of_batch(ids, inputs["attention_mask"], None, None)
    found = questions_of_batch(ids, sequences, positions, lengths, "turn", config)
    texts = [processor.tokenizer.decode(ids.flatten()[question]) for question in found]
    looked = "Look:  \nWhich?"
    assert texts == ["\nWhat is in the picture?", looked, looked, "\nHi", "A car?\n", ""]
