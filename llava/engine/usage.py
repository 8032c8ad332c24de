"""What an answer took. Imports no torch."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Usage:
    """Tokens of one answer. visual: those of images and videos in the prompt. prefilled: computed, not kept."""

    prompt: int
    visual: int
    prefilled: int
    answer: int
