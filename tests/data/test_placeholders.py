"""Where `<image>` and `<video>` are put into a text, by every way to a prompt."""

import random
from types import SimpleNamespace

import pytest

from llava.chat.exchange import Exchange, placed
from llava.data.conversation import template_turns
from llava.data.placeholders import place_in_front, with_places
from llava.data.schema import Dialogue, Turn
from llava.eval.messages import dialogue_of_context


def test_placeholders_stand_in_front():
    assert place_in_front(["<image>", "<image>"], "Compare") == "<image> <image>\nCompare"
    assert place_in_front(["<video>"], "") == "<video>\n"
    assert place_in_front([], "Compare") == "Compare"


def test_images_go_to_the_first_human_turn_unless_some_turn_has_a_place():
    turns = [Turn("system", "s"), Turn("human", "a"), Turn("gpt", "b"), Turn("human", "c")]
    assert [turn.text for turn in with_places(Dialogue(turns, ["one", "two"])).turns] == [
        *("s", "<image> <image>\na", "b", "c")
    ]
    late = [*turns[:-1], Turn("human", "c <image>")]
    assert with_places(Dialogue(late, ["one", "two"])).turns == late
    assert with_places(Dialogue(turns, [])).turns == turns
    assert with_places(Dialogue(turns[:1], ["one"])).turns == turns[:1]


@pytest.mark.parametrize("seed", range(20))
def test_every_way_puts_images_in_the_same_place(seed, make_image, make_processor):
    draw = random.Random(seed)
    images = [make_image(60, 60, number) for number in range(draw.randint(1, 4))]
    text = "".join(draw.choices("ab \n0<>", k=draw.randint(1, 12))).strip() or "a"
    wanted = " ".join(["<image>"] * len(images)) + "\n" + text
    question = Exchange(text, (SimpleNamespace(kind="image"),) * len(images))
    message = {"role": "user", "content": [*({"type": "image"} for _ in images), {"type": "text", "text": text}]}
    rendered = make_processor().apply_chat_template([message], add_generation_prompt=True)
    assert placed(question) == wanted
    assert dialogue_of_context(text, images).turns[0].text == wanted
    assert with_places(Dialogue([Turn("human", text)], images)).turns[0].text == wanted
    assert rendered.endswith(f"<|im_start|>user\n{wanted}<|im_end|>\n<|im_start|>assistant\n")
    trained = template_turns((Turn("human", f"{text}\n<image>"), Turn("gpt", "b")), "qwen_1_5", images=1)
    assert trained[0].text == f"<image>\n{text}"
