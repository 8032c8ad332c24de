"""Prompts, ids and labels against the released code's, and the label rule of the paper."""

import json

import pytest
from transformers import AutoTokenizer

from llava.constants import SYSTEM_MESSAGE
from llava.data.conversation import add_visual_tokens, encode_conversation, encode_prompt
from llava.data.schema import Turn, parse_sample
from llava.errors import LlavaError
from tests.paths import GOLDEN_DIR

GOLDEN = json.loads((GOLDEN_DIR / "text.json").read_text())
TRAINING = [("qwen_1_5", case) for case in GOLDEN["qwen"]] + [("plain", case) for case in GOLDEN["plain"]]


@pytest.fixture(scope="module")
def tokenizer():
    tokenizer = AutoTokenizer.from_pretrained(GOLDEN_DIR / "tokenizer")
    add_visual_tokens(tokenizer, vocab_size=512)
    return tokenizer


def with_placeholder(tokenizer, ids: list[int]) -> list[int]:
    image = tokenizer.convert_tokens_to_ids("<image>")
    return [GOLDEN["image_placeholder"] if token == image else token for token in ids]


def test_the_golden_list_is_complete():
    assert (len(GOLDEN["qwen"]), len(GOLDEN["plain"]), len(GOLDEN["prompts"])) == (7, 3, 4)


@pytest.mark.parametrize(
    ("template", "case"), TRAINING, ids=lambda value: value["name"] if isinstance(value, dict) else ""
)
def test_ids_and_released_labels_equal_the_released_code(tokenizer, template, case):
    sample = parse_sample({"conversations": case["conversations"]}, case["name"])
    images = sum(turn.text.count("<image>") for turn in sample.turns) if case.get("has_image", True) else 0
    system = case.get("system_message") or SYSTEM_MESSAGE
    ids, labels = encode_conversation(tokenizer, sample.turns, template, "released", system, images)
    assert with_placeholder(tokenizer, ids) == case["input_ids"]
    assert labels == case["labels"]


@pytest.mark.parametrize("case", GOLDEN["prompts"], ids=lambda case: case["name"])
def test_prompts_equal_the_released_code(tokenizer, case):
    turns = (Turn("human", case["question"]),)
    ids = encode_prompt(tokenizer, turns, images=case["question"].count("<image>"))
    assert tokenizer.decode(ids) == case["prompt"]
    assert with_placeholder(tokenizer, ids) == case["input_ids"]


def test_answers_supervises_the_assistants_text_and_its_end_alone(tokenizer):
    turns = (Turn("human", "<image>\nA?"), Turn("gpt", "red car\n"), Turn("human", "B?"), Turn("gpt", "yes"))
    ids, labels = encode_conversation(tokenizer, turns, "qwen_1_5", "answers", images=1)
    supervised = [token for token, label in zip(ids, labels) if label != -100]
    assert tokenizer.decode(supervised) == "red car\n<|im_end|>yes<|im_end|>"
    assert all(label in (token, -100) for token, label in zip(ids, labels))


def test_prompt_and_training_sequence_begin_alike(tokenizer):
    turns = (Turn("human", "<image>\nWhat is it?"), Turn("gpt", "A car."))
    ids, _ = encode_conversation(tokenizer, turns, "qwen_1_5", "answers", images=1)
    prompt = encode_prompt(tokenizer, turns[:1], images=1)
    assert ids[: len(prompt)] == prompt


def test_special_tokens_in_a_users_text_stay_text(tokenizer):
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    ids = encode_prompt(tokenizer, (Turn("human", "a<|im_end|>b"),))
    assert ids.count(end) == 2  # of the system and the user turn


def test_a_leading_system_turn_replaces_the_system_message(tokenizer):
    prompt = tokenizer.decode(encode_prompt(tokenizer, (Turn("system", "Be brief."), Turn("human", "Hi"))))
    turns = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
    assert prompt == turns + "<|im_start|>assistant\n"


def test_a_leading_answer_is_dropped(tokenizer):
    alone = encode_prompt(tokenizer, (Turn("human", "Hi"),))
    assert encode_prompt(tokenizer, (Turn("gpt", "Hello"), Turn("human", "Hi"))) == alone


@pytest.mark.parametrize(
    ("turns", "template", "images", "message"),
    [
        (
            [Turn("human", "<image> <image>"), Turn("gpt", "a")],
            "qwen_1_5",
            1,
            "found 2 <image> placeholders but 1 images",
        ),
        ([Turn("human", "no image"), Turn("gpt", "a")], "qwen_1_5", 1, "found 0 <image> placeholders but 1 images"),
        ([Turn("gpt", "a")], "qwen_1_5", 0, "no human turn"),
        ([Turn("human", "<image>")], "plain", 1, "needs two turns"),
        ([Turn("human", "a"), Turn("gpt", "b")], "plain", 0, "needs two turns, the first with <image>"),
        ([Turn("human", "a")], "vicuna", 0, "unknown template 'vicuna'; choose one of plain, qwen_1_5"),
    ],
)
def test_conversations_that_do_not_fit_are_refused(tokenizer, turns, template, images, message):
    with pytest.raises(LlavaError, match=message):
        encode_conversation(tokenizer, tuple(turns), template, "answers", images=images)
