"""Pages of digits written as text, from which the language model learns the questions before it sees any.

They are laid out as the visual tokens will be: crop 0, then the map's rows, each with a newline.
"""

from collections.abc import Callable

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from llava.constants import IGNORE_INDEX
from llava.data.collator import Collator
from llava.data.conversation import encode_conversation
from llava.data.schema import Turn
from llava.demo.digit_pages import (
    KINDS,
    PAGE,
    PATCH,
    SLIP,
    Cell,
    ask,
    ask_arithmetic,
    caption_of,
    cells_of,
    copy_out,
    note_cells,
    numbers_to_train_on,
    page_turns,
    places_of,
    read_row,
)

SPACE, NEWLINE = "\u0120", "\u010a"  # as byte-level BPE writes them
COMPARISONS = 0.5  # of the conversations, which ask nothing else: what takes longest to learn
CAPTION_SHARE = 0.1


def text_batch(
    tokenizer: PreTrainedTokenizerBase, seed: list[int], size: int, write: Callable[..., tuple[list[int], list[int]]]
) -> dict[str, torch.Tensor]:
    """A batch of what `write` makes, write_drills or write_chat, and a tenth of captions; see Collator."""
    rng = np.random.default_rng(seed)
    encoded = [(_caption if rng.random() < CAPTION_SHARE else write)(tokenizer, rng) for _ in range(size)]
    items = [{"input_ids": ids, "labels": labels, "num_images": 0, "num_videos": 0} for ids, labels in encoded]
    return Collator(tokenizer.pad_token_id)(items)


def write_drills(tokenizer: PreTrainedTokenizerBase, rng: np.random.Generator) -> tuple[list[int], list[int]]:
    """A page, or a slip, and everything that can be asked of it, in random order and a word or two each.

    Such rows learn to look places up in a quarter of the time that conversations take, which ask little in many tokens.
    """
    numbers = numbers_to_train_on(rng)
    rows = [
        ([f"{SPACE}row", SPACE, str(row + 1)], [*tokenizer.tokenize(read_row(numbers, row)), NEWLINE])
        for row in range(len(numbers))
    ]
    places = [
        ([f"{SPACE}place", f"{SPACE}{place}"], tokenizer.tokenize(place + digit)) for place, digit in places_of(numbers)
    ]
    count, larger = (ask(rng, numbers, kind).answer for kind in ("count", "compare"))
    questions = [*places, *rows, ([f"{SPACE}digits"], [count]), ([f"{SPACE}larger"], [larger])]
    ids = tokenizer.convert_tokens_to_ids(_note(cells_of(numbers, SLIP)) if rng.random() < 0.5 else _page(numbers))
    labels = [IGNORE_INDEX] * len(ids)
    for index in rng.permutation(len(questions)):
        question, answer = map(tokenizer.convert_tokens_to_ids, questions[index])
        ids, labels = ids + question + answer, labels + [IGNORE_INDEX] * len(question) + answer
    return ids, labels


def _caption(tokenizer: PreTrainedTokenizerBase, rng: np.random.Generator) -> tuple[list[int], list[int]]:
    """A note and its caption, as in stage 1."""
    cells = note_cells(rng)
    turns = (Turn("human", "<image>"), Turn("gpt", caption_of(cells)))
    return _with_page(tokenizer, *encode_conversation(tokenizer, turns, "plain", "answers", images=1), _note(cells))


def write_chat(tokenizer: PreTrainedTokenizerBase, rng: np.random.Generator) -> tuple[list[int], list[int]]:
    """A conversation about a page, or a sum."""
    if rng.random() < 0.05:
        question = ask_arithmetic(rng)
        turns = (Turn("human", question.text), Turn("gpt", question.answer))
        return encode_conversation(tokenizer, turns, "qwen_1_5", "answers")
    numbers = numbers_to_train_on(rng)
    turns = page_turns(rng, numbers, ("compare",) if rng.random() < COMPARISONS else KINDS)
    return _with_page(
        tokenizer, *encode_conversation(tokenizer, turns, "qwen_1_5", "answers", images=1), _page(numbers)
    )


def _with_page(
    tokenizer: PreTrainedTokenizerBase, ids: list[int], labels: list[int], page: list[str]
) -> tuple[list[int], list[int]]:
    """The placeholder replaced by a page's or a note's tokens."""
    at = ids.index(tokenizer.convert_tokens_to_ids("<image>"))
    shown = tokenizer.convert_tokens_to_ids(page)
    return ids[:at] + shown + ids[at + 1 :], labels[:at] + [IGNORE_INDEX] * len(shown) + labels[at + 1 :]


def _note(cells: list[Cell]) -> list[str]:
    """One token per visual token of a crop."""
    return [_token(shown) for row in copy_out(cells) for shown in row]


def _page(numbers: tuple[str, ...]) -> list[str]:
    """One token per visual token of a page: crop 0, in which nothing can be read, then the map."""
    rows = copy_out(cells_of(numbers), PAGE.size // PATCH)
    return _note([]) + [token for row in rows for token in (*map(_token, row), NEWLINE)]


def _token(shown: str) -> str:
    return shown.replace(" ", SPACE)
