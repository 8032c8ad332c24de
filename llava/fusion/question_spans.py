"""The two rules by which the question about an image is found, and what of a prompt may be reused under each.

`turn` takes the text of the turn that holds the image. `released` repeats the released code's arithmetic, the same for
all images: the text around them in the first user turn, whichever turn they are in.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class TurnMarks:
    """Token ids that delimit turns: <|im_start|>, <|im_end|> and the newline that ends a role's name."""

    start: int
    end: int
    newline: int


def question_positions(
    ids: list[int], images: list[tuple[int, int]], rule: str, marks: TurnMarks, placeholders: set[int]
) -> list[list[int]]:
    """For each image (or video) of one sequence, the positions of its question; empty where there is none.

    ids: the sequence without padding, placeholders expanded. images: (first position, number of tokens) of each, in
    order. placeholders: the ids that stand for visual tokens.
    rule: `turn` or `released`.
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


def reusable_tokens(
    rule: str, alike: int, ids: list[int], images: list[int], images_before: int, turn_start: int
) -> int:
    """How many leading tokens of a prompt have the states that they had in the prompt before, at most `alike`.

    A question can stand behind its image, whose tokens are then not the same for another question: only what sees an
    image together with its question is reusable.

    alike: leading tokens that both prompts share. ids: the prompt. images: first positions of its images and videos, of
    which the prompt before had images_before. turn_start: the id that begins a turn.
    """
    starts = [position for position, token in enumerate(ids) if token == turn_start]
    if rule == "released":  # the first user turn, for all images; their number counts, too
        nothing_new = len(images) == images_before and all(image < alike for image in images)
        return alike if nothing_new and alike >= starts[2] else 0
    begin = max((start for start in starts if start <= alike), default=0)
    end = min((start for start in starts if start > begin), default=len(ids))
    return begin if any(begin <= image < end for image in images) else alike
