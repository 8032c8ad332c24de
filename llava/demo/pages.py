"""What every data set of pages has: questions with exact answers, drawn from (seed, stream, index)."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from llava.data.schema import Turn

STREAMS = ("stage1", "stage1_5", "stage2", "test")
TEXT_SHARE = 0.08  # conversations without a page, in stages 1.5 and 2


@dataclass(frozen=True)
class Question:
    """kind: what is asked for; scores are told by kind."""

    kind: str
    text: str
    answer: str


@dataclass(frozen=True)
class Content:
    """What pages show and what is asked about them. Both functions draw from the generator alone.

    sample: of the generator and the stage, an image, or None, and a conversation about it.
    test: of the generator and the page's index, a page of what is held out and the questions about it.
    description: a sentence for the test set's README.
    """

    sample: Callable[[np.random.Generator, str], tuple[Image.Image | None, tuple[Turn, ...]]]
    test: Callable[[np.random.Generator, int], tuple[Image.Image, tuple[Question, ...]]]
    description: str


def rng_for(seed: int, stream: str, index: int) -> np.random.Generator:
    """The generator of one sample."""
    return np.random.default_rng([seed, STREAMS.index(stream), index])


def conversation(questions: list[Question]) -> tuple[Turn, ...]:
    """Questions and answers in turn, the page in front of the first."""
    turns = [turn for question in questions for turn in (Turn("human", question.text), Turn("gpt", question.answer))]
    return (Turn("human", f"<image>\n{turns[0].text}"), *turns[1:])
