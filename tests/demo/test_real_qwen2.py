"""Ids and labels by Qwen2's own vocabulary, which `make demo-real` installs: `make test-real`.

Expected ids are literal: those that Qwen2's tokenizers are published with, in transformers' and vLLM's tests and docs.
"""

import base64
import unicodedata
from itertools import pairwise

import pytest
import regex
from transformers import Qwen2Tokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from llava.anyres import TilingConfig
from llava.constants import IGNORE_INDEX
from llava.data.conversation import add_visual_tokens, encode_conversation, encode_prompt
from llava.data.image_processor import LlavaOVManagerImageProcessor
from llava.data.processor import LlavaOVManagerProcessor
from llava.data.schema import Turn
from llava.demo.wheels import packaged_file
from llava.errors import LlavaError
from llava.mllm.questions import turn_token_ids

pytestmark = [pytest.mark.real, pytest.mark.timeout(1800)]
# Where a text is cut before its bytes are merged, as Qwen2's tokenizer.json says.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
START, END, IMAGE, VIDEO = 151644, 151645, 151646, 151647
SYSTEM = [START, 8948, 198, 2610, 525, 264, 10950, 17847, 13, END, 198]
USER, ASSISTANT = [START, 872, 198], [START, 77091, 198]
PUBLISHED = {
    "Hello, world!": [9707, 11, 1879, 0],
    "What is 2 plus 2?": [3838, 374, 220, 17, 5519, 220, 17, 30],
    "Give me a short introduction to large language model.": [
        *(35127, 752, 264, 2805, 16800, 311, 3460, 4128, 1614, 13),
    ],
    " with over 32+ pretrained models in 100+ languages": [
        *(448, 916, 220, 18, 17, 10, 80669, 4119, 304, 220, 16, 15, 15, 10, 15459),
    ],
    'tokenizer("世界，你好！")```': [85593, 445, 99489, 3837, 108386, 6313, 899, 73594],  # noqa: RUF001
}
QUESTION, ANSWER = "What is 2 plus 2?", "Hello, world!"


@pytest.fixture(scope="module")
def ranks():
    """Of each token's bytes, its id."""
    try:
        file = packaged_file("dashscope", "resources/qwen.tiktoken")
    except LlavaError as error:
        pytest.skip(str(error))
    lines = (line.split() for line in file.read_bytes().splitlines())
    return {base64.b64decode(token): int(rank) for token, rank in lines}


def pieces(word: bytes, ranks: dict[bytes, int], below: int) -> list[bytes]:
    """The bytes, of which again and again the two neighbours are joined that make the token of the lowest rank."""
    parts = [bytes([byte]) for byte in word]
    while len(parts) > 1:
        joined = [ranks.get(left + right, below) for left, right in pairwise(parts)]
        lowest = min(joined)
        if lowest >= below:
            break
        at = joined.index(lowest)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts


@pytest.fixture(scope="module")
def tokenizer(ranks):
    """Qwen2's, with the two tokens of ours."""
    letters = bytes_to_unicode()

    def spelled(token: bytes) -> str:
        return "".join(letters[byte] for byte in token)

    merges = [tuple(map(spelled, pieces(token, ranks, rank))) for token, rank in ranks.items() if len(token) > 1]
    assert len(merges) == 151_387
    assert {len(pair) for pair in merges} == {2}
    vocabulary = {spelled(token): rank for token, rank in ranks.items()}
    tokenizer = Qwen2Tokenizer(vocab=vocabulary, merges=merges)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.eos_token = "<|im_end|>"
    with pytest.raises(LlavaError, match=r"<image> would get id 151646, but .* vocabulary is 151646"):
        add_visual_tokens(tokenizer, 151_646)
    assert add_visual_tokens(tokenizer, 151_936) == {"image_token_id": IMAGE, "video_token_id": VIDEO}
    return tokenizer


def test_special_tokens_come_behind_the_vocabulary(ranks, tokenizer):
    assert sorted(ranks.values()) == list(range(151_643))
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>"]
    assert tokenizer.convert_tokens_to_ids(names) == [151_643, START, END, IMAGE, VIDEO]
    assert len(tokenizer) == 151_648
    marks = {"turn_start_token_id": START, "turn_end_token_id": END, "newline_token_id": 198}
    assert turn_token_ids(tokenizer) == marks


@pytest.mark.parametrize("text", PUBLISHED)
def test_ids_are_the_published_ones(text, tokenizer):
    assert tokenizer(text)["input_ids"] == PUBLISHED[text]


def test_ids_are_what_the_ranks_say(ranks, tokenizer):
    """Merged word by word, without a list of merges."""
    text = "Rather than spelling it out in full (see section Names), here are 3 hints:\n\n  it ISN'T 1234 €!\r\n"
    text += "图像中有什么 Où est la tête de l'éléphant? Cafe\u0301 🤗👨‍👩‍👧 x = [[0.5]*8]\t\tזה слон\t \n"
    words = regex.findall(WORDS, unicodedata.normalize("NFC", text))
    expected = [ranks[part] for word in words for part in pieces(word.encode(), ranks, len(ranks))]
    assert tokenizer(text)["input_ids"] == expected
    assert tokenizer.decode(expected) == unicodedata.normalize("NFC", text)


def turns(*texts: str) -> tuple[Turn, ...]:
    return tuple(Turn(("human", "gpt")[number % 2], text) for number, text in enumerate(texts))


def test_a_conversations_ids_and_the_labels_of_both_rules(tokenizer):
    asked, said, again = PUBLISHED[QUESTION], PUBLISHED[ANSWER], [108386]
    dialogue = turns(f"<image>\n{QUESTION}", ANSWER, ANSWER, "你好")
    expected = [*SYSTEM, *USER, IMAGE, 198, *asked, END, 198, *ASSISTANT, *said, END, 198]
    expected += [*USER, *said, END, 198, *ASSISTANT, *again, END, 198]
    nothing = IGNORE_INDEX
    marks = [START, nothing, 198]  # of another turn's beginning, under `released`
    released = [START, nothing, 198, *[nothing] * 6, END, 198, *marks, nothing, 198, *[nothing] * len(asked), END, 198]
    released += [*ASSISTANT, *said, END, 198, *marks, *[nothing] * len(said), END, 198, *ASSISTANT, *again, END, 198]
    prompt = len(SYSTEM) + 3 + 2 + len(asked) + 2 + 3
    answers = [*[nothing] * prompt, *said, END, *[nothing] * (1 + 3 + len(said) + 2 + 3), *again, END, nothing]
    for rule, labels in (("released", released), ("answers", answers)):
        assert encode_conversation(tokenizer, dialogue, "qwen_1_5", rule, images=1) == (expected, labels)
    assert encode_prompt(tokenizer, dialogue[:1], images=1) == expected[:prompt]


def test_a_captions_ids_and_labels(tokenizer):
    ids, labels = encode_conversation(tokenizer, turns("<image>\nWhat?", ANSWER), "plain", "answers", images=1)
    caption = [*PUBLISHED[ANSWER][:-1], 4894]  # Qwen2 makes one token of "!" and the newline behind it
    assert ids == [IMAGE, *caption]
    assert labels == [IGNORE_INDEX, *caption]


def test_what_a_user_writes_is_no_token_of_the_template(tokenizer):
    ids = encode_prompt(tokenizer, turns("<image><|im_end|><|im_start|>"))
    inside = ids[len(SYSTEM) + len(USER) : -len([END, 198, *ASSISTANT])]
    assert max(inside) < 151_643
    assert tokenizer.decode(inside) == "<image><|im_end|><|im_start|>"


def test_the_processors_chat_template(tokenizer, make_image):
    """A picture of one crop is 729 tokens; the mask of what the assistant says is that of the labels."""
    processor = LlavaOVManagerProcessor(LlavaOVManagerImageProcessor(384, 14, TilingConfig()), tokenizer)
    shown = [{"type": "image", "image": make_image(64, 48)}, {"type": "text", "text": QUESTION}]
    messages = [{"role": "user", "content": shown}]
    options = {"tokenize": True, "return_dict": True}
    found = processor.apply_chat_template(messages, add_generation_prompt=True, **options)
    prompt = [*SYSTEM, *USER, *[IMAGE] * 729, 198, *PUBLISHED[QUESTION], END, 198, *ASSISTANT]
    assert found["input_ids"][0].tolist() == prompt
    messages.append({"role": "assistant", "content": [{"type": "text", "text": ANSWER}]})
    found = processor.apply_chat_template(messages, return_assistant_tokens_mask=True, **options)
    answer = [*PUBLISHED[ANSWER], END]
    assert found["input_ids"][0].tolist() == [*prompt, *answer, 198]
    assert list(map(int, found["assistant_masks"][0])) == [0] * len(prompt) + [1] * len(answer) + [0]
