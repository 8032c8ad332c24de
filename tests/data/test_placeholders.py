"""Where `<image>` and `<video>` are put into a text, by every way to a prompt."""

import random
from ast import literal_eval
from itertools import takewhile
from types import SimpleNamespace

import pytest
from lmms_eval.protocol import ChatMessages

from llava.chat.exchange import Exchange, placed
from llava.constants import SYSTEM_MESSAGE
from llava.data.conversation import template_turns
from llava.data.placeholders import place_in_front, with_places
from llava.data.schema import Dialogue, Turn
from llava.eval.messages import dialogue_from, dialogue_of_context


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


def random_parts(draw) -> list[str]:
    """What a message holds in its order: "image", "video", or a text in quotes."""
    kinds = draw.choices(["image", "video", "text"], k=draw.randint(1, 6))
    return [repr("".join(draw.choices("ab\n0 ", k=3))) if kind == "text" else kind for kind in kinds]


def as_text(parts: list[str]) -> str:
    """What opens a message is joined in front of its text; the others stand where they are."""
    opening = list(takewhile(("image", "video").__contains__, parts))
    front = "<" + "> <".join(opening) + ">\n" if opening else ""
    behind = (f"<{part}>" if part in ("image", "video") else literal_eval(part) for part in parts[len(opening) :])
    return front + "".join(behind)


@pytest.mark.parametrize("seed", range(30))
def test_the_chat_template_writes_dialogues_as_evaluation_does(seed, make_image, make_processor):
    """Several turns, each with images and videos in front of its texts and between them."""
    draw = random.Random(seed)
    turns = [random_parts(draw) for _ in range(draw.randint(1, 4))]
    shown = {"image": make_image(20, 30), "video": [make_image(20, 30)] * 2}
    roles = [("user", "assistant")[number % 2] for number in range(len(turns))]
    messages = [
        {
            "role": role,
            "content": [
                {"type": part, "url": shown[part]} if part in shown else {"type": "text", "text": literal_eval(part)}
                for part in parts
            ],
        }
        for role, parts in zip(roles, turns)
    ]
    texts = [as_text(parts) for parts in turns]
    dialogue = dialogue_from(ChatMessages(messages=messages).messages)
    assert [turn.text for turn in dialogue.turns] == texts
    rendered = make_processor().apply_chat_template(messages)
    written = "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in zip(roles, texts))
    assert rendered == f"<|im_start|>system\n{SYSTEM_MESSAGE}<|im_end|>\n{written}"


@pytest.mark.parametrize("kinds", [("video",), ("image", "video"), ("image", "image", "video", "video")])
def test_chat_and_simple_requests_put_videos_as_messages_do(kinds, make_image, make_clip):
    visuals = {"image": make_image(20, 30), "video": str(make_clip())}
    text = as_text([*kinds, "'Why?'"])
    assert placed(Exchange("Why?", tuple(SimpleNamespace(kind=kind) for kind in kinds))) == text
    assert dialogue_of_context("Why?", [visuals[kind] for kind in kinds], max_frames=2).turns[0].text == text


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
