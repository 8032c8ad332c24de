"""Where `<image>` and `<video>` stand in a text: one rule for training, chat, evaluation and the chat template."""

from collections.abc import Sequence
from itertools import accumulate

from llava.constants import IMAGE_TOKEN, VIDEO_TOKEN
from llava.data.schema import Dialogue, Turn

PLACEHOLDERS = {"image": IMAGE_TOKEN, "video": VIDEO_TOKEN}
BETWEEN, BEHIND = " ", "\n"  # what separates placeholders from each other, and from the text behind them


def place_in_front(placeholders: Sequence[str], text: str) -> str:
    """The text behind its placeholders, as LLaVA's training data has it: `<image> <image>`, a newline, the text."""
    return f"{BETWEEN.join(placeholders)}{BEHIND}{text}" if placeholders else text


def expanded_spans(ids: Sequence[int], token_id: int, counts: Sequence[int]) -> list[tuple[int, int]]:
    """Where images, or videos, stand in a text whose placeholders are expanded: (first position, tokens) of each.

    Args:
        ids: of the text.
        token_id: the placeholder's.
        counts: how many tokens each image, or video, has.
    """
    places = [position for position, token in enumerate(ids) if token == token_id]
    firsts = accumulate(counts[:-1], initial=0)
    return [(places[first], count) for first, count in zip(firsts, counts)]


def with_places(dialogue: Dialogue) -> Dialogue:
    """The dialogue with places for its images: where no turn has any, all go in front of the first human turn.

    A wrong number of places is found when the turns are encoded.
    """
    if not dialogue.images or any(IMAGE_TOKEN in turn.text for turn in dialogue.turns):
        return dialogue
    turns = list(dialogue.turns)
    first = next((index for index, turn in enumerate(turns) if turn.role == "human"), None)
    if first is not None:
        turns[first] = Turn("human", place_in_front([IMAGE_TOKEN] * len(dialogue.images), turns[first].text))
    return dialogue._replace(turns=turns)
