"""Text in a picture: words at their places, wrapped to a width."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol


class Font(Protocol):
    """What is asked of Pillow's fonts."""

    def getlength(self, text: str) -> float:
        """The width of the text in pixels."""
        ...


@dataclass(frozen=True)
class Word:
    """A piece of text at its place in pixels; style: the caller's word for how it looks."""

    text: str
    style: str
    x: int
    y: int
    width: int


def set_text(
    pieces: Iterable[tuple[str, str]], font: Font, left: int, top: int, width: int, line: int
) -> tuple[list[Word], int]:
    """Wraps (text, style) pieces to `width` pixels, in lines of `line` pixels, from (left, top).

    Returns the words, and the y of the line after the last one.
    """
    words, x, y = [], left, top
    for text, style in pieces:
        for atom in _atoms(text, font, width):
            if atom == "\n":
                x, y = left, y + line
                continue
            length = round(font.getlength(atom))
            if x > left and x + length > left + width:
                x, y = left, y + line
            words.append(Word(atom, style, x, y, length))
            x += length
    return words, y + (line if x > left else 0)


def in_ascii(text: str) -> str:
    """What Pillow's own font has; all else as its code."""
    return text.encode("ascii", "backslashreplace").decode()


def _atoms(text: str, font: Font, width: int) -> Iterator[str]:
    """Newlines, runs of spaces, and words; words too long for a line in pieces."""
    for atom in re.findall(r"\n|[^\S\n]+|\S+", text.replace("\t", "    ")):
        begin = 0
        for end in range(1, len(atom) + 1):
            if font.getlength(atom[begin : end + 1]) > width:
                yield atom[begin:end]
                begin = end
        if begin < len(atom):
            yield atom[begin:]
