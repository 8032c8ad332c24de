"""From turns to token ids and labels: the prompt templates `plain` and `qwen_1_5` and the two label rules.

`<image>` stands for one image and becomes one placeholder id; the processor expands it. All other text is text: special
tokens are put in by the template alone, so that nothing that a user writes can end a turn.
"""

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN, SYSTEM_MESSAGE
from llava.data.schema import Turn
from llava.errors import DataError, LlavaError

TEMPLATES = ("plain", "qwen_1_5")
LABEL_RULES = ("answers", "released")
START, END = "<|im_start|>", "<|im_end|>"
_CHATML_ROLES = {"human": "user", "gpt": "assistant"}


def encode_conversation(
    tokenizer, turns: tuple[Turn, ...], template: str, label_rule: str, system: str = SYSTEM_MESSAGE, images: int = 0
) -> tuple[list[int], list[int]]:
    """Token ids and labels of a training sample, of equal length.

    template: `plain` is image and caption (stage 1), `qwen_1_5` is ChatML.
    label_rule: `answers` supervises the assistant's text and its <|im_end|>; `released` supervises the assistant's
        whole turn and every newline, <|im_start|> and <|im_end|> anywhere. `plain` supervises the caption under both.
    images: how many images the sample has; without any, `<image>` in the text is plain text.

    Raises DataError when the turns do not fit the template or their placeholders do not match `images`.
    """
    _check_choice("template", template, TEMPLATES)
    _check_choice("label rule", label_rule, LABEL_RULES)
    if images:
        turns = tuple(_image_first(turn) for turn in turns)
        found = sum(turn.text.count(IMAGE_TOKEN) for turn in turns)
        if found != images:
            raise DataError(f"found {found} {IMAGE_TOKEN} placeholders but {images} images")
    if template == "plain":
        return _encode_plain(tokenizer, turns, bool(images))
    turns, system = _split_system(turns, system)
    ids, labels = [], []
    for turn in (Turn("system", system), *turns):
        turn_ids, is_answer = _encode_turn(tokenizer, turn, bool(images))
        ids += turn_ids
        if label_rule == "answers":
            labels += [token if answer else IGNORE_INDEX for token, answer in zip(turn_ids, is_answer)]
        else:
            labels += _released_labels(tokenizer, turn, turn_ids)
    return ids, labels


def encode_prompt(tokenizer, turns: tuple[Turn, ...], system: str = SYSTEM_MESSAGE, images: int = 0) -> list[int]:
    """Token ids of a qwen_1_5 prompt that ends where the assistant's next answer begins."""
    turns, system = _split_system(turns, system)
    found = sum(turn.text.count(IMAGE_TOKEN) for turn in turns) if images else 0
    if found != images:
        raise DataError(f"found {found} {IMAGE_TOKEN} placeholders but {images} images")
    ids = []
    for turn in (Turn("system", system), *turns):
        ids += _encode_turn(tokenizer, turn, bool(images))[0]
    return [*ids, tokenizer.convert_tokens_to_ids(START), *_text_ids(tokenizer, "assistant\n")]


def _image_first(turn: Turn) -> Turn:
    """A single placeholder moves to the start of its turn; none or several stay where they are."""
    if turn.text.count(IMAGE_TOKEN) != 1 or turn.text.startswith(IMAGE_TOKEN):
        return turn
    rest = turn.text.replace(IMAGE_TOKEN, "").strip()
    return Turn(turn.role, f"{IMAGE_TOKEN}\n{rest}".strip())


def _split_system(turns: tuple[Turn, ...], system: str) -> tuple[tuple[Turn, ...], str]:
    """A leading system turn replaces the system message; another leading turn that is not human is dropped."""
    if turns and turns[0].role == "system":
        turns, system = turns[1:], turns[0].text
    if turns and turns[0].role != "human":
        turns = turns[1:]
    if not turns:
        raise DataError("the conversation has no human turn")
    return turns, system


def _encode_plain(tokenizer, turns: tuple[Turn, ...], has_images: bool) -> tuple[list[int], list[int]]:
    if len(turns) != 2 or not has_images or IMAGE_TOKEN not in turns[0].text:
        raise DataError(f"the template 'plain' needs two turns, the first with {IMAGE_TOKEN}; found {len(turns)} turns")
    caption = _text_ids(tokenizer, turns[1].text + "\n")
    return [tokenizer.convert_tokens_to_ids(IMAGE_TOKEN), *caption], [IGNORE_INDEX, *caption]


def _encode_turn(tokenizer, turn: Turn, has_images: bool) -> tuple[list[int], list[bool]]:
    """Ids of one ChatML turn and, for each, whether it belongs to an answer (the assistant's text and its end)."""
    header = f"{_CHATML_ROLES.get(turn.role, turn.role)}\n"
    image_id = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    ids, in_text = [tokenizer.convert_tokens_to_ids(START)], [False]
    text_begin = len(header)
    for number, piece in enumerate((header + turn.text).split(IMAGE_TOKEN) if has_images else [header + turn.text]):
        if number:
            ids.append(image_id)
            in_text.append(False)
        encoding = tokenizer(piece, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True)
        ids += encoding["input_ids"]
        in_text += [begin >= text_begin for begin, _ in encoding["offset_mapping"]]
        text_begin = 0
    newline = _text_ids(tokenizer, "\n")
    ids += [tokenizer.convert_tokens_to_ids(END), *newline]
    in_text += [True] + [False] * len(newline)
    return ids, [turn.role == "gpt" and inside for inside in in_text]


def _released_labels(tokenizer, turn: Turn, ids: list[int]) -> list[int]:
    """The released code's rule: it un-masks newlines and the turn markers wherever they stand."""
    image_id = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    if turn.role not in ("system", "human"):
        return [IGNORE_INDEX if token == image_id else token for token in ids]
    always = {*_text_ids(tokenizer, "\n"), *tokenizer.convert_tokens_to_ids([START, END])}
    return [token if token in always else IGNORE_INDEX for token in ids]


def _text_ids(tokenizer, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]


def _check_choice(what: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise LlavaError(f"unknown {what} {value!r}; choose one of {', '.join(choices)}")
