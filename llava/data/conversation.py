"""From turns to token ids and labels: the prompt templates `plain` and `qwen_1_5` and the two label rules.

`<image>` stands for one image, `<video>` for one video; each becomes one placeholder id, which the processor expands.
All other text is text: special tokens are put in by the template alone, so that nothing that a user writes can end a
turn. What a template takes and leaves out is decided in template_turns, for training, check and preview alike.
"""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, cast, get_args

from llava.bounds import check_choice
from llava.constants import IGNORE_INDEX, IMAGE_TOKEN, SYSTEM_MESSAGE, VIDEO_TOKEN
from llava.data.placeholders import place_in_front
from llava.data.schema import Turn
from llava.errors import LlavaError, NoAnswerError, PlaceholderError, TemplateError
from llava.printable import brief

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Template = Literal["plain", "qwen_1_5"]
TEMPLATES: tuple[str, ...] = get_args(Template)
LabelRule = Literal["answers", "released"]
START, END = "<|im_start|>", "<|im_end|>"
_WORD = "<\0"  # for the "<" of what is no place, until it is encoded
NO_ANSWER = "the conversation has no answer to learn from"
_CHATML_ROLES = {"human": "user", "gpt": "assistant"}
_SHOWN = ((IMAGE_TOKEN, "image"), (VIDEO_TOKEN, "video"))
_SHOWS_NOTHING = {"gpt": "an answer", "system": "a system turn"}


def encode_conversation(
    tokenizer: "PreTrainedTokenizerBase",
    turns: tuple[Turn, ...],
    template: str,
    label_rule: str,
    system: str = SYSTEM_MESSAGE,
    images: int = 0,
    videos: int = 0,
) -> tuple[list[int], list[int]]:
    """Token ids and labels of a training sample, of equal length.

    template: `plain` is image and caption (stage 1), `qwen_1_5` is ChatML.
    label_rule: `answers` supervises the assistant's text and its <|im_end|>, of answers that have text; `released`
        supervises the assistant's whole turn and every newline, <|im_start|> and <|im_end|> anywhere. `plain`
        supervises the caption under both.
    images, videos: how many the sample has; without any, `<image>` or `<video>` in the text is plain text.

    The ids before an answer's text are those of encode_prompt, whatever the text begins with. Raises DataError as
    template_turns does.
    """
    check_choice("label rule", label_rule, LabelRule)
    turns = template_turns(turns, template, images, videos)
    placeholders = _placeholders(images, videos)
    if template == "plain":
        return _encode_plain(tokenizer, turns, placeholders)
    if turns[0].role != "system":
        turns = (Turn("system", system), *turns)
    ids, labels = [], []
    for turn in turns:
        turn_ids, text = _encode_turn(tokenizer, turn, placeholders)
        ids += turn_ids
        if label_rule == "released":
            labels += _released_labels(tokenizer, turn, turn_ids, placeholders)
        elif is_answer(turn):
            labels += [token if position in text else IGNORE_INDEX for position, token in enumerate(turn_ids)]
        else:
            labels += [IGNORE_INDEX] * len(turn_ids)
    return ids, labels


def template_turns(turns: tuple[Turn, ...], template: str, images: int = 0, videos: int = 0) -> tuple[Turn, ...]:
    """The turns of a training sample that a template encodes, their images and videos at the place where it has them.

    images, videos: how many the sample has. `plain` takes two turns, a human one that shows something and the answer.
    `qwen_1_5` leaves out a first turn, or one behind a leading system turn, that is not human.
    Raises PlaceholderError when what is encoded has not a place for each image and video, or has one in an answer or a
    system turn, and when it has none to show but a human turn whose first or last line is placeholders alone (elsewhere
    in a text without images or videos they are words); TemplateError when the turns do not fit the template;
    NoAnswerError when no encoded turn is an answer with text.
    """
    check_choice("template", template, Template)
    placeholders = _placeholders(images, videos)
    turns = tuple(_visual_first(turn, placeholders) for turn in turns)
    check_placeholders(turns, images, videos)
    _check_nothing_lost(turns, placeholders)
    if template == "plain":
        turns = _plain_turns(turns, placeholders)
        check_placeholders(turns[:1], images, videos, " in the prompt")
    else:
        turns, system = _split_system(turns)
        turns = turns if system is None else (Turn("system", system), *turns)
        check_placeholders(turns, images, videos, " in the prompt")
    for turn in turns:
        if turn.role in _SHOWS_NOTHING and (misplaced := _split(turn.text, placeholders)[1::2]):
            raise PlaceholderError(f"{misplaced[0]} stands in {_SHOWS_NOTHING[turn.role]}, which can show nothing")
    if not any(is_answer(turn) for turn in turns):
        raise NoAnswerError(NO_ANSWER)
    return turns


def is_answer(turn: Turn) -> bool:
    """Whether a turn is the assistant's and has text: a blank one would teach to say nothing."""
    return turn.role == "gpt" and bool(turn.text.strip())


def encode_prompt(
    tokenizer: "PreTrainedTokenizerBase",
    turns: tuple[Turn, ...],
    system: str = SYSTEM_MESSAGE,
    images: int = 0,
    videos: int = 0,
) -> list[int]:
    """Token ids of a qwen_1_5 prompt that ends where the assistant's next answer begins."""
    turns, leading = _split_system(turns)
    check_placeholders(turns, images, videos)
    ids: list[int] = []
    for turn in (Turn("system", system if leading is None else leading), *turns):
        ids += _encode_turn(tokenizer, turn, _placeholders(images, videos))[0]
    return [*ids, *token_ids(tokenizer, [START]), *_text_ids(tokenizer, "assistant\n")]


def check_placeholders(turns: tuple[Turn, ...], images: int, videos: int, where: str = "") -> None:
    """Raises PlaceholderError unless the turns mark a place for each image and video. where: for the message."""
    for token, count, things in ((IMAGE_TOKEN, images, "images"), (VIDEO_TOKEN, videos, "videos")):
        placeholders = sum(turn.text.count(token) for turn in turns) if count else 0
        if placeholders != count:
            raise PlaceholderError(f"found {placeholders} {token} placeholders{where} but {count} {things}")


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
    return Turn(turn.role, place_in_front([placeholder], (before + after).strip()).strip())


def _check_nothing_lost(turns: tuple[Turn, ...], placeholders: tuple[str, ...]) -> None:
    """Raises PlaceholderError where a human turn is written as one that shows something of which there is none."""
    for number, turn in enumerate(turns, start=1):
        lines = "".join(_split(turn.text, placeholders)[::2]).strip().split("\n")
        for token, thing in _SHOWN:
            alone = any(token in line and not line.replace(token, "").strip() for line in (lines[0], lines[-1]))
            if alone and turn.role == "human":
                raise PlaceholderError(f"turn {number} shows {token}, but the sample has no {thing}")


def _split_system(turns: tuple[Turn, ...]) -> tuple[tuple[Turn, ...], str | None]:
    """The turns behind a leading system turn, and its text, if any; another leading turn but a human one is dropped."""
    system = None
    if turns and turns[0].role == "system":
        turns, system = turns[1:], turns[0].text
    if turns and turns[0].role != "human":
        turns = turns[1:]
    if not turns:
        raise TemplateError("the conversation has no human turn")
    return turns, system


def _plain_turns(turns: tuple[Turn, ...], placeholders: tuple[str, ...]) -> tuple[Turn, ...]:
    needed = f"the template 'plain' needs two turns, the first with {IMAGE_TOKEN}"
    if len(turns) != 2 or len(_split(turns[0].text, placeholders)) == 1:
        raise TemplateError(f"{needed}; found {len(turns)} turns")
    roles = [turn.role for turn in turns]
    if roles != ["human", "gpt"]:
        raise TemplateError(f"{needed} from human and the second from gpt; found {brief(roles)}")
    return turns


def _encode_plain(
    tokenizer: "PreTrainedTokenizerBase", turns: tuple[Turn, ...], placeholders: tuple[str, ...]
) -> tuple[list[int], list[int]]:
    shown = _split(turns[0].text, placeholders)[1::2]
    caption = _text_ids(tokenizer, turns[1].text + "\n")
    return [*token_ids(tokenizer, shown), *caption], [IGNORE_INDEX] * len(shown) + caption


def _encode_turn(
    tokenizer: "PreTrainedTokenizerBase", turn: Turn, placeholders: tuple[str, ...]
) -> tuple[list[int], range]:
    """Ids of one ChatML turn and, of an assistant's, where its text and end stand among them.

    An assistant's text is encoded apart from the line before it, which a prompt ends with: joined, the newline behind
    "assistant" and a text that begins with a newline would become other tokens.
    """
    header, text = f"{_CHATML_ROLES.get(turn.role, turn.role)}\n", turn.text
    ids = token_ids(tokenizer, [START])
    if turn.role == "gpt":
        ids += _text_ids(tokenizer, header)
    else:
        text = header + text
    begin = len(ids)
    for number, piece in enumerate(_split(text, placeholders)):
        ids += token_ids(tokenizer, [piece]) if number % 2 else _text_ids(tokenizer, piece)
    ids += token_ids(tokenizer, [END])
    end = len(ids)
    return [*ids, *_text_ids(tokenizer, "\n")], range(begin, end)


def _released_labels(
    tokenizer: "PreTrainedTokenizerBase", turn: Turn, ids: list[int], placeholders: tuple[str, ...]
) -> list[int]:
    """The released code's rule: it un-masks newlines and the turn markers wherever they stand."""
    visual = set(token_ids(tokenizer, placeholders))
    if turn.role not in ("system", "human"):
        return [IGNORE_INDEX if token in visual else token for token in ids]
    always = {*_text_ids(tokenizer, "\n"), *token_ids(tokenizer, [START, END])}
    return [token if token in always else IGNORE_INDEX for token in ids]


def token_ids(tokenizer: "PreTrainedTokenizerBase", tokens: Sequence[str]) -> list[int]:
    """The id of each token."""
    return cast(list[int], tokenizer.convert_tokens_to_ids(list(tokens)))


def add_visual_tokens(tokenizer: "PreTrainedTokenizerBase", vocab_size: int) -> dict[str, int]:
    """Makes `<image>` and `<video>` special tokens; returns {"image_token_id": ..., "video_token_id": ...}.

    Qwen2's tokenizers gain ids 151646 and 151647, which lie inside the model's vocabulary of 151,936, so that no
    embedding is resized. Raises LlavaError when an id would lie outside a vocabulary of `vocab_size`.
    """
    tokens = [IMAGE_TOKEN, VIDEO_TOKEN]
    tokenizer.add_special_tokens({"additional_special_tokens": tokens}, replace_extra_special_tokens=False)
    ids = token_ids(tokenizer, tokens)
    for token, token_id in zip(tokens, ids):
        if token_id >= vocab_size:
            raise LlavaError(f"{token} would get id {token_id}, but the language model's vocabulary is {vocab_size}")
    return dict(zip(("image_token_id", "video_token_id"), ids))


def literal(text: str) -> str:
    """The text, marked so that `<image>` and `<video>` in it are words in the prompt and no places."""
    return re.sub(f"<(?={IMAGE_TOKEN[1:]}|{VIDEO_TOKEN[1:]})", _WORD, text)


def as_written(text: str) -> str:
    """The text without the marks of `literal`."""
    return text.replace(_WORD, "<")


def _text_ids(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[int]:
    return tokenizer(as_written(text), add_special_tokens=False, split_special_tokens=True)["input_ids"]
