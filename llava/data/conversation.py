"""From turns to token ids and labels: the prompt templates `plain` and `qwen_1_5` and the two label rules.

`<image>` stands for one image, `<video>` for one video; each becomes one placeholder id, which the processor expands.
All other text is text: special tokens are put in by the template alone, so that nothing that a user writes can end a
turn.
"""

import re

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN, SYSTEM_MESSAGE, VIDEO_TOKEN
from llava.data.schema import Turn
from llava.errors import DataError, LlavaError

TEMPLATES = ("plain", "qwen_1_5")
LABEL_RULES = ("answers", "released")
START, END = "<|im_start|>", "<|im_end|>"
_CHATML_ROLES = {"human": "user", "gpt": "assistant"}


def encode_conversation(
    tokenizer,
    turns: tuple[Turn, ...],
    template: str,
    label_rule: str,
    system: str = SYSTEM_MESSAGE,
    images: int = 0,
    videos: int = 0,
) -> tuple[list[int], list[int]]:
    """Token ids and labels of a training sample, of equal length.

    template: `plain` is image and caption (stage 1), `qwen_1_5` is ChatML.
    label_rule: `answers` supervises the assistant's text and its <|im_end|>; `released` supervises the assistant's
        whole turn and every newline, <|im_start|> and <|im_end|> anywhere. `plain` supervises the caption under both.
    images, videos: how many the sample has; without any, `<image>` or `<video>` in the text is plain text.

    Raises DataError when the turns do not fit the template or their placeholders do not match `images` and `videos`.
    """
    _check_choice("template", template, TEMPLATES)
    _check_choice("label rule", label_rule, LABEL_RULES)
    placeholders = _placeholders(images, videos)
    turns = tuple(_visual_first(turn, placeholders) for turn in turns)
    check_placeholders(turns, images, videos)
    if template == "plain":
        return _encode_plain(tokenizer, turns, placeholders)
    turns, system = _split_system(turns, system)
    ids, labels = [], []
    for turn in (Turn("system", system), *turns):
        turn_ids, is_answer = _encode_turn(tokenizer, turn, placeholders)
        ids += turn_ids
        if label_rule == "answers":
            labels += [token if answer else IGNORE_INDEX for token, answer in zip(turn_ids, is_answer)]
        else:
            labels += _released_labels(tokenizer, turn, turn_ids, placeholders)
    return ids, labels


def encode_prompt(
    tokenizer, turns: tuple[Turn, ...], system: str = SYSTEM_MESSAGE, images: int = 0, videos: int = 0
) -> list[int]:
    """Token ids of a qwen_1_5 prompt that ends where the assistant's next answer begins."""
    turns, system = _split_system(turns, system)
    check_placeholders(turns, images, videos)
    ids = []
    for turn in (Turn("system", system), *turns):
        ids += _encode_turn(tokenizer, turn, _placeholders(images, videos))[0]
    return [*ids, tokenizer.convert_tokens_to_ids(START), *_text_ids(tokenizer, "assistant\n")]


def check_placeholders(turns: tuple[Turn, ...], images: int, videos: int) -> None:
    """Raises DataError unless the turns mark a place for each image and video."""
    for token, count, things in ((IMAGE_TOKEN, images, "images"), (VIDEO_TOKEN, videos, "videos")):
        found = sum(turn.text.count(token) for turn in turns) if count else 0
        if found != count:
            raise DataError(f"found {found} {token} placeholders but {count} {things}")


def _placeholders(images: int, videos: int) -> tuple[str, ...]:
    """The placeholders that mean something in a sample with so many images and videos."""
    return tuple(token for token, count in ((IMAGE_TOKEN, images), (VIDEO_TOKEN, videos)) if count)


def _split(text: str, placeholders: tuple[str, ...]) -> list[str]:
    """Text and placeholders in turn; a text, perhaps empty, comes first and last."""
    return re.split(f"({'|'.join(placeholders)})", text) if placeholders else [text]


def _visual_first(turn: Turn, placeholders: tuple[str, ...]) -> Turn:
    """A single placeholder moves to the start of its turn; none or several stay where they are."""
    pieces = _split(turn.text, placeholders)
    if len(pieces) != 3 or not pieces[0]:
        return turn
    before, placeholder, after = pieces
    return Turn(turn.role, f"{placeholder}\n{(before + after).strip()}".strip())


def _split_system(turns: tuple[Turn, ...], system: str) -> tuple[tuple[Turn, ...], str]:
    """A leading system turn replaces the system message; another leading turn that is not human is dropped."""
    if turns and turns[0].role == "system":
        turns, system = turns[1:], turns[0].text
    if turns and turns[0].role != "human":
        turns = turns[1:]
    if not turns:
        raise DataError("the conversation has no human turn")
    return turns, system


def _encode_plain(tokenizer, turns: tuple[Turn, ...], placeholders: tuple[str, ...]) -> tuple[list[int], list[int]]:
    shown = _split(turns[0].text, placeholders)[1::2] if len(turns) == 2 else []
    if not shown:
        raise DataError(f"the template 'plain' needs two turns, the first with {IMAGE_TOKEN}; found {len(turns)} turns")
    caption = _text_ids(tokenizer, turns[1].text + "\n")
    return [*tokenizer.convert_tokens_to_ids(shown), *caption], [IGNORE_INDEX] * len(shown) + caption


def _encode_turn(tokenizer, turn: Turn, placeholders: tuple[str, ...]) -> tuple[list[int], list[bool]]:
    """Ids of one ChatML turn and, for each, whether it belongs to an answer (the assistant's text and its end)."""
    header = f"{_CHATML_ROLES.get(turn.role, turn.role)}\n"
    ids, in_text = [tokenizer.convert_tokens_to_ids(START)], [False]
    text_begin = len(header)
    for number, piece in enumerate(_split(header + turn.text, placeholders)):
        if number % 2:
            ids.append(tokenizer.convert_tokens_to_ids(piece))
            in_text.append(False)
            continue
        encoding = tokenizer(piece, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True)
        ids += encoding["input_ids"]
        in_text += [begin >= text_begin for begin, _ in encoding["offset_mapping"]]
        text_begin = 0
    newline = _text_ids(tokenizer, "\n")
    ids += [tokenizer.convert_tokens_to_ids(END), *newline]
    in_text += [True] + [False] * len(newline)
    return ids, [turn.role == "gpt" and inside for inside in in_text]


def _released_labels(tokenizer, turn: Turn, ids: list[int], placeholders: tuple[str, ...]) -> list[int]:
    """The released code's rule: it un-masks newlines and the turn markers wherever they stand."""
    visual = set(tokenizer.convert_tokens_to_ids(list(placeholders)))
    if turn.role not in ("system", "human"):
        return [IGNORE_INDEX if token in visual else token for token in ids]
    always = {*_text_ids(tokenizer, "\n"), *tokenizer.convert_tokens_to_ids([START, END])}
    return [token if token in always else IGNORE_INDEX for token in ids]


def _text_ids(tokenizer, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]


def _check_choice(what: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise LlavaError(f"unknown {what} {value!r}; choose one of {', '.join(choices)}")
