"""Prompts that the chat template rendered: to a batch of token ids, and where in the text each of them stands.

The pieces between special tokens are text and nothing else, see llava/data/chat_messages.py.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from llava.constants import IMAGE_TOKEN, VIDEO_TOKEN
from llava.data.chat_messages import special_tokens, unmarked, unmarked_places
from llava.data.conversation import token_ids
from llava.data.options import Options, TextOptions
from llava.errors import DataError

Span = tuple[int, int]  # of characters: the first, and that behind the last
LONGEST = 2**40  # a tokenizer's model_max_length beyond this means that it tells none
AS_TEXT = {"add_special_tokens": False, "split_special_tokens": True}


def rendered_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids, one of each placeholder."""
    ids: list[int] = []
    for piece, is_token in _pieces(tokenizer, text):
        if is_token:
            ids += token_ids(tokenizer, [piece])
        else:
            ids += tokenizer(unmarked(piece), **AS_TEXT).input_ids
    return ids


def rendered_spans(
    tokenizer: PreTrainedTokenizerBase, text: str, counts: Mapping[int, Sequence[int]]
) -> tuple[list[Span], list[dict[str, Any]]]:
    """Of each token its characters, and of each placeholder what stands for it, as transformers' processors tell both.

    Characters are those of the text in which placeholders are repeated, the marks in it counted.

    Args:
        tokenizer: A fast one.
        text: The rendered prompt.
        counts: How often each placeholder is repeated, in the order of the text, by its token id.
    """
    spans: list[Span] = []
    replacements = []
    begin = gained = 0
    pending = {tokenizer.convert_ids_to_tokens(token_id): iter(times) for token_id, times in counts.items()}
    for piece, is_token in _pieces(tokenizer, text):
        first = begin + gained
        if is_token and piece in pending:
            repeated = piece * next(pending[piece])
            ends = range(first, first + len(repeated), len(piece))
            spans += [(start, start + len(piece)) for start in ends]
            replacement = {"type": piece.strip("<>"), "span": (begin, begin + len(piece)), "text": piece}
            replacement |= {"new_span": (first, first + len(repeated)), "replacement": repeated}
            replacements.append(replacement)
            gained += len(repeated) - len(piece)
        elif is_token:
            spans.append((first, first + len(piece)))
        else:
            places = [*unmarked_places(piece), len(piece)]
            offsets = tokenizer(unmarked(piece), return_offsets_mapping=True, **AS_TEXT).offset_mapping
            for start, end in offsets:
                last = places[end - 1] + 1 if end > start else places[start]
                spans.append((first + places[start], first + last))
        begin += len(piece)
    return spans, replacements


def cut_row(tokenizer: PreTrainedTokenizerBase, row: list[int], options: TextOptions) -> list[int]:
    """At most max_length tokens. Raises DataError where more are not to be cut, and where an image would be."""
    limit = _limit(tokenizer, options)
    if limit is None or len(row) <= limit:
        return row
    too_long = f"found {len(row)} tokens but max_length is {limit}"
    if not options.truncation:
        raise DataError(f"{too_long}; truncation=True would cut text")
    kept = _cut(tokenizer, row, limit)
    for token_id in token_ids(tokenizer, [IMAGE_TOKEN, VIDEO_TOKEN]):
        if kept.count(token_id) < row.count(token_id):
            raise DataError(f"{too_long}, and a cut there would go through an image or video, or leave it out")
    return kept


def padded_rows(tokenizer: PreTrainedTokenizerBase, rows: list[list[int]], options: Options) -> dict[str, Any]:
    """input_ids and attention_mask of rows of tokens; DataError where they need a length that is not told."""
    text = options.text
    if text.padding == "do_not_pad" and options.return_tensors and len(set(map(len, rows))) > 1:
        raise DataError(f"prompts of {len(min(rows, key=len))} to {len(max(rows, key=len))} tokens need padding")
    if text.padding == "max_length" and text.max_length is None and tokenizer.model_max_length > LONGEST:
        raise DataError("padding='max_length' needs a max_length: the tokenizer tells none")
    padded = tokenizer.pad(
        {"input_ids": rows},
        padding=text.padding,
        max_length=text.max_length,
        padding_side=text.padding_side,
        pad_to_multiple_of=text.pad_to_multiple_of,
        return_attention_mask=text.return_attention_mask,
        return_tensors=options.return_tensors,
        verbose=False,
    )
    return dict(padded)


def offsets_of(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    counts: Sequence[Mapping[int, Sequence[int]]],
    lengths: Sequence[int],
    options: Options,
) -> dict[str, Any]:
    """What rendered_spans tells of each text, as options ask for it, spans cut and padded as the tokens are.

    counts: Of each text. lengths: Of each row of tokens, cut and padded.
    """
    text, offsets, replacements = options.text, [], []
    limit = _limit(tokenizer, text)
    for prompt, of_prompt, length in zip(texts, counts, lengths):
        spans, replaced = rendered_spans(tokenizer, prompt, of_prompt)
        spans = spans if limit is None else _cut(tokenizer, spans, limit)
        padding = [(0, 0)] * (length - len(spans))
        is_left = (text.padding_side or tokenizer.padding_side) == "left"
        offsets.append(padding + spans if is_left else spans + padding)
        replacements.append(replaced)
    result: dict[str, Any] = {}
    if text.return_offsets_mapping:
        result["offset_mapping"] = torch.tensor(offsets) if options.return_tensors == "pt" else offsets
    if text.return_text_replacement_offsets:
        result["text_replacement_offsets"] = replacements
    return result


def _limit(tokenizer: PreTrainedTokenizerBase, options: TextOptions) -> int | None:
    if options.max_length is None and (options.truncation or options.padding == "max_length"):
        return tokenizer.model_max_length
    return options.max_length


def _cut(tokenizer: PreTrainedTokenizerBase, row: list, limit: int) -> list:
    return row[:limit] if tokenizer.truncation_side == "right" else row[-limit:]


def _pieces(tokenizer: PreTrainedTokenizerBase, text: str) -> Iterator[tuple[str, bool]]:
    """The pieces in their order, none empty, and whether each is a special token."""
    special = special_tokens(tokenizer)
    for number, piece in enumerate(re.split(f"({'|'.join(map(re.escape, special))})", text)):
        if piece:
            yield piece, number % 2 == 1
