"""Where the sequences of a batch lie, and in each the question about every image, by a rule of fusion.

The rules themselves: llava/fusion/question_spans.py.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate, pairwise

import torch
from transformers import PreTrainedTokenizerBase
from transformers.cache_utils import Cache

from llava.errors import LlavaError
from llava.fusion.base import Questions
from llava.fusion.question_spans import TurnMarks, question_positions
from llava.mllm.attention import packed_lengths
from llava.mllm.configuration import LlavaOVManagerConfig


def turn_token_ids(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """The fields of LlavaOVManagerConfig that TurnMarks are made of: turn_start_token_id and so on.

    Raises LlavaError when <|im_start|>, <|im_end|> or the newline is no token of its own.
    """
    ids = {}
    for name, text in (("turn_start", "<|im_start|>"), ("turn_end", "<|im_end|>"), ("newline", "\n")):
        encoded = tokenizer(text, add_special_tokens=False)["input_ids"]
        if len(encoded) != 1:
            raise LlavaError(f"the tokenizer {tokenizer.name_or_path!r} makes {len(encoded)} tokens of {text!r}, not 1")
        ids[f"{name}_token_id"] = encoded[0]
    return ids


def question_finder(config: LlavaOVManagerConfig) -> Callable[..., list[torch.Tensor]] | None:
    """questions_of_batch by the rule of a LlavaOVManagerConfig's fusion; None where that asks no question."""
    rule = config.fusion.question_rule
    return None if rule is None else partial(questions_of_batch, rule=rule, config=config)


def questions_of_batch(
    input_ids: torch.Tensor,
    sequences: list[tuple[int, int]],
    positions: torch.Tensor,
    lengths: list[int],
    rule: str,
    config: LlavaOVManagerConfig,
) -> list[torch.Tensor]:
    """For each image and video of a batch, the flat positions (Q,), in (batch * sequence) order, of its question.

    input_ids: (B, L). sequences: see sequences_of_batch. positions: (V,), flat, of all visual tokens. lengths: tokens
    of each image or video. rule: see question_positions. config: for the ids.
    """
    starts = positions[torch.tensor([0, *lengths[:-1]]).cumsum(0)].tolist() if len(positions) else []
    # Images come before videos; within a sequence the question rules want them as they stand.
    visuals = sorted((start, length, number) for number, (start, length) in enumerate(zip(starts, lengths)))
    marks = TurnMarks(config.turn_start_token_id, config.turn_end_token_id, config.newline_token_id)
    placeholders = {config.image_token_id, config.video_token_id}
    questions = [positions] * len(starts)
    flat_ids = input_ids.flatten().tolist()
    for begin, end in sequences:
        inside = [visual for visual in visuals if begin <= visual[0] < end]
        spans = [(start - begin, length) for start, length, _ in inside]
        places = question_positions(flat_ids[begin:end], spans, rule, marks, placeholders)
        for (_, _, number), question in zip(inside, places):
            questions[number] = torch.tensor(question, dtype=torch.int64, device=input_ids.device) + begin
    return questions or [positions]  # a blank crop has no question, and no tokens that could ask


def mean_embeddings(inputs_embeds: torch.Tensor, questions: Sequence[torch.Tensor]) -> Questions:
    """What guides the visual input: of each question the mean of inputs_embeds (B, L, D) at its flat positions (Q,).

    Those of no question are used, too, for a gradient of zero: what is computed of them is the same on all ranks.
    """
    lengths = [len(question) for question in questions]
    positions = torch.cat(list(questions)).to(inputs_embeds.device)
    texts = inputs_embeds.flatten(0, 1).index_select(0, positions).split(lengths)
    means = torch.stack([text.mean(0) if len(text) else text.sum(0) for text in texts])
    return Questions(means, torch.tensor(lengths).to(means.device, non_blocking=True) > 0)


def sequences_of_batch(
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | dict[str, torch.Tensor] | None,
    position_ids: torch.Tensor | None,
    past_key_values: Cache | None,
    sequence_lengths: list[int] | None = None,
) -> list[tuple[int, int]]:
    """Where each sequence begins and ends, flat, without padding: one in a row, or all samples of a packed row.

    input_ids: (B, L). attention_mask: see not_padding. position_ids: see packed_lengths. sequence_lengths: of each
    sequence, from its row's beginning; where they are given, nothing else is asked.
    """
    rows, columns = input_ids.shape
    if sequence_lengths is not None and rows > 1:
        return [(row * columns, row * columns + length) for row, length in enumerate(sequence_lengths)]
    if sequence_lengths is None:
        lengths = packed_lengths(position_ids, attention_mask, past_key_values)
        sequence_lengths = lengths.tolist() if lengths is not None else None
    if sequence_lengths is not None:
        return list(pairwise(accumulate(sequence_lengths, initial=0)))
    seen = int(past_key_values.get_seq_length()) if past_key_values is not None else 0
    kept = not_padding(input_ids, attention_mask, seen)
    begins = kept.int().argmax(dim=1) + torch.arange(len(kept), device=kept.device) * kept.shape[1]
    return [(begin, end) for begin, end in torch.stack([begins, begins + kept.sum(dim=1)], dim=1).tolist()]


def not_padding(
    input_ids: torch.Tensor, attention_mask: torch.Tensor | dict[str, torch.Tensor] | None, seen: int
) -> torch.Tensor:
    """(B, L) booleans: which of input_ids (B, L) are no padding. seen: how many tokens the cache holds before these.

    attention_mask: (B, seen + L), None, or what generate prepares for a static cache, {"full_attention": mask}: one of
    the former, or (B, 1, L, keys) of booleans or of zeros and large negative numbers.
    """
    if isinstance(attention_mask, dict):
        attention_mask = attention_mask["full_attention"]
    if attention_mask is None:
        return torch.ones_like(input_ids, dtype=torch.bool)
    if attention_mask.dim() == 4:  # the last query sees every key that is no padding
        last = attention_mask[:, 0, -1]
        attention_mask = last if last.dtype == torch.bool else last == 0
    return attention_mask[:, seen : seen + input_ids.shape[1]].bool()
