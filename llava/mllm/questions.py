"""Which tokens of a sequence are the question about an image: what adaptive managers ask the maps with."""

from dataclasses import dataclass
from itertools import pairwise

import torch

from llava.errors import LlavaError
from llava.mllm.attention import packed_lengths


@dataclass(frozen=True)
class TurnMarks:
    """Token ids that delimit turns: <|im_start|>, <|im_end|> and the newline that ends a role's name."""

    start: int
    end: int
    newline: int


def turn_token_ids(tokenizer) -> dict[str, int]:
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


def questions_of_batch(
    input_ids, sequences: list[tuple[int, int]], positions, lengths: list[int], config
) -> list[torch.Tensor]:
    """For each image and video of a batch, the flat positions (Q,), in (batch * sequence) order, of its question.

    input_ids: (B, L). sequences: see sequences_of_batch. positions: (V,), flat, of all visual tokens. lengths: tokens
    of each image or video. config: LlavaOVManagerConfig.
    """
    starts = positions[torch.tensor([0, *lengths[:-1]]).cumsum(0)].tolist() if len(positions) else []
    # Images come before videos; within a sequence the question rules want them as they stand.
    visuals = sorted((start, length, number) for number, (start, length) in enumerate(zip(starts, lengths)))
    marks = TurnMarks(config.turn_start_token_id, config.turn_end_token_id, config.newline_token_id)
    placeholders = {config.image_token_id, config.video_token_id}
    found = [positions] * len(starts)
    flat_ids = input_ids.flatten().tolist()
    for begin, end in sequences:
        own = [visual for visual in visuals if begin <= visual[0] < end]
        spans = [(start - begin, length) for start, length, _ in own]
        asked = question_positions(flat_ids[begin:end], spans, config.managers.question, marks, placeholders)
        for (_, _, number), places in zip(own, asked):
            found[number] = torch.tensor(places, dtype=torch.int64, device=input_ids.device) + begin
    return found or [positions]  # a blank crop has no question, and no tokens that could ask


def sequences_of_batch(input_ids: torch.Tensor, attention_mask, position_ids, past_key_values) -> list[tuple[int, int]]:
    """Where each sequence begins and ends, flat, without padding: one in a row, or all samples of a packed row.

    input_ids: (B, L). attention_mask: see not_padding. position_ids: see packed_lengths.
    """
    lengths = packed_lengths(position_ids, attention_mask, past_key_values)
    if lengths is not None:
        return list(pairwise([0, *lengths.cumsum(0).tolist()]))
    seen = int(past_key_values.get_seq_length()) if past_key_values is not None else 0
    kept = not_padding(input_ids, attention_mask, seen)
    begins = kept.int().argmax(dim=1) + torch.arange(len(kept), device=kept.device) * kept.shape[1]
    return [tuple(bounds) for bounds in torch.stack([begins, begins + kept.sum(dim=1)], dim=1).tolist()]


def not_padding(input_ids: torch.Tensor, attention_mask, seen: int) -> torch.Tensor:
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


def question_positions(
    ids: list[int], images: list[tuple[int, int]], rule: str, marks: TurnMarks, placeholders: set[int]
) -> list[list[int]]:
    """For each image (or video) of one sequence, the positions of its question; empty where there is none.

    ids: the sequence without padding, placeholders expanded. images: (first position, number of tokens) of each, in
    order. placeholders: the ids that stand for visual tokens.
    rule: `turn` takes the text of the turn that holds the image. `released` repeats the released code's arithmetic, the
    same for all images: the text around them in the first user turn, whichever turn they are in.
    """
    if not images:
        return []
    if rule == "turn":
        return [_turn_text(ids, first, marks, placeholders) for first, _ in images]
    return [_released_span(ids, images, marks)] * len(images)


def _turn_text(ids: list[int], image: int, marks: TurnMarks, placeholders: set[int]) -> list[int]:
    starts = [position for position in range(image) if ids[position] == marks.start]
    if not starts:
        return []
    # Text that begins with a newline can share a token with the newline behind its role, a single token in Qwen2.
    begin = next((p + 1 for p in range(starts[-1], image) if ids[p] == marks.newline), starts[-1] + 2)
    end = next((position for position in range(image, len(ids)) if ids[position] == marks.end), len(ids))
    return [position for position in range(begin, end) if ids[position] not in placeholders]


def _released_span(ids: list[int], images: list[tuple[int, int]], marks: TurnMarks) -> list[int]:
    """From behind the second <|im_start|> to before the third, without the images and one token on either side of them.

    The third is found before expansion and shifted by all images' tokens, also by those that come after it. Without
    turns (the plain template) all of the caption but its last token is the question.
    """
    begin, end = images[0][0], sum(images[-1])
    added = sum(length - 1 for _, length in images)
    starts = [_unexpanded(position, images) for position, token in enumerate(ids) if token == marks.start]
    if len(starts) < 2:
        return list(range(end, len(ids) - 1))
    third = starts[2] + added if len(starts) > 2 else len(ids)
    return [*range(starts[1] + 3, begin - 1), *range(end + 1, third - 2)]


def _unexpanded(position: int, images: list[tuple[int, int]]) -> int:
    """The position as it was when each image was a single placeholder."""
    return position - sum(length - 1 for first, length in images if first < position)
