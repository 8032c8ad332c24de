"""What is odd about a sample that can be used: it is told and counted, and trained on."""

from collections.abc import Sequence
from typing import NamedTuple

from llava.constants import IMAGE_TOKEN, VIDEO_TOKEN
from llava.data.conversation import check_placeholders, is_answer, template_turns
from llava.data.schema import ROLES, Sample, Turn
from llava.errors import PlaceholderError
from llava.printable import brief

NOTES = {
    "duplicate_id": "an id that an earlier row has",
    "words": "<image> or <video> in a text without any, read as words",
    "role": "a role that is none of human, gpt and system, passed through as it is",
    "left_out": "a turn before the first question, which the template leaves out",
    "unanswered": "a question without an answer, from which nothing is learned",
    "unasked": "an answer to no question, which is learned",
    "empty_answer": "an answer without text, which label rule answers does not learn",
    "shortened": "more tokens than max_length or the model's positions, shortened",
}
_TOKENS = (IMAGE_TOKEN, VIDEO_TOKEN)


class Note(NamedTuple):
    """One thing that is odd. kind: a key of NOTES."""

    kind: str
    message: str


def notes_of(sample: Sample, template: str) -> list[Note]:
    """What is odd about the turns of a sample. Raises DataError as template_turns does."""
    turns, images, videos = sample.turns, len(sample.images), len(sample.videos)
    encoded = template_turns(turns, template, images, videos)
    notes = [
        Note("words", f"turn {number} has {token}, but the sample has no {thing}: read as words")
        for number, turn in enumerate(turns, start=1)
        for token, thing, count in ((IMAGE_TOKEN, "image", images), (VIDEO_TOKEN, "video", videos))
        if not count and token in turn.text
    ]
    notes += [
        Note("role", f"turn {number} has the role {brief(turn.role)}, none of human, gpt and system")
        for number, turn in enumerate(turns, start=1)
        if turn.role not in ROLES.values()
    ]
    if len(encoded) < len(turns):
        number = 2 if turns[0].role == "system" else 1
        notes.append(Note("left_out", f"turn {number} of {turns[number - 1].role} stands before the first question"))
    return notes + _order(turns, len(turns) - len(encoded))


def _order(turns: Sequence[Turn], left_out: int) -> list[Note]:
    notes = []
    begin = left_out + (turns[0].role == "system")
    for number, (turn, following) in enumerate(zip(turns[begin:], [*turns[begin + 1 :], None]), start=begin + 1):
        if turn.role == "human" and (following is None or following.role == "human"):
            notes.append(Note("unanswered", f"turn {number} of human has no answer: nothing is learned from it"))
        elif turn.role == "gpt" and following is not None and following.role == "gpt":
            notes.append(Note("unasked", f"turn {number + 1} of gpt follows another answer, not a question"))
        if turn.role == "gpt" and not is_answer(turn):
            notes.append(Note("empty_answer", f"turn {number} of gpt has no text"))
    return notes


def has_places_and_answer(sample: Sample) -> bool:
    """Whether the record alone, whatever a template takes of it, has an answer and a place for each image and video."""
    try:
        check_placeholders(sample.turns, len(sample.images), len(sample.videos))
    except PlaceholderError:
        return False
    return any(map(is_answer, sample.turns))


def is_regular(sample: Sample) -> bool:
    """Whether the record is one of which a quick look tells that nothing is odd with it under qwen_1_5.

    Questions and answers with text in turn, and a place in a question for each image and video.
    """
    turns = sample.turns
    questions, answers = turns[::2], turns[1::2]
    if not 0 < len(turns) == 2 * len(answers):
        return False
    texts = "\n".join(turn.text for turn in questions)
    without = texts.replace(IMAGE_TOKEN, "").replace(VIDEO_TOKEN, "")
    return (
        all(turn.role == "human" for turn in questions)
        and all(turn.role == "gpt" and turn.text.strip() for turn in answers)
        and texts.count(IMAGE_TOKEN) == len(sample.images)
        and texts.count(VIDEO_TOKEN) == len(sample.videos)
        and not any(token in text for token in _TOKENS for text in (without, *(turn.text for turn in answers)))
    )
