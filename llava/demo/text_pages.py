"""Text pages: real prose in several typefaces, too small to read unless a page is cut into tiles.

A page is a square of `across` x `across` tiles: a heading, some lines, a number below. Shrunk to one tile its letters
are `across` times smaller: the font's size is the dial that makes tiles necessary. A note of one tile holds some lines
alone, for stage 1. The prose of test pages is in no training page (see prose.py); half of the training pages have their
words in random order, so that knowing the prose by heart does not help.

Everything is drawn from (seed, stream, index), and is the same for the same versions of Python, Pillow and the fonts.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice

import numpy as np
from PIL import Image, ImageDraw

from llava.data.schema import Turn
from llava.demo.fonts import Face, faces, font, width
from llava.demo.pages import TEXT_SHARE, Content, Question, conversation
from llava.demo.prose import bare, topics
from llava.errors import LlavaError

KINDS = ("after", "first", "last", "heading", "number", "lines")
CAPTION = "Read the page."
SHUFFLED = 0.5  # of the training pages: their words in random order
QUESTIONS = 4  # of a training page
MARGIN, FEWEST_LINES = 5, 3


@dataclass(frozen=True)
class Layout:
    """How pages look. tile: pixels per side. across: tiles per side of a page. sizes: of fonts, in pixels, inclusive.

    fonts: of llava/demo/fonts.py. Raises LlavaError where they are not installed, and where the largest size leaves no
    room for FEWEST_LINES on a page or a line in a tile.
    """

    tile: int = 112
    across: int = 2
    sizes: tuple[int, int] = (10, 13)
    fonts: str = "matplotlib"

    def __post_init__(self) -> None:
        faces(self.fonts)
        smallest, largest = self.sizes
        if not 0 < smallest <= largest:
            raise LlavaError(f"font sizes must rise from at least 1, found {smallest} to {largest}")
        room = min(_room(self.side, largest, framed=True), FEWEST_LINES * _room(self.tile, largest, framed=False))
        if room < FEWEST_LINES:
            raise LlavaError(
                f"a font of {largest} pixels leaves room for {max(room, 0)} lines on a page of {self.side} pixels; "
                f"{FEWEST_LINES} are needed"
            )

    @property
    def side(self) -> int:
        """Pixels per side of a page."""
        return self.tile * self.across


@dataclass(frozen=True)
class Placed:
    """A word as it stands. x: of its left end, y: of its baseline, in pixels."""

    word: str
    x: float
    y: float
    size: int


@dataclass(frozen=True)
class TextPage:
    """What stands on a sheet of side x side pixels. heading and number are empty on a note."""

    side: int
    face: Face
    heading: str
    lines: tuple[tuple[str, ...], ...]
    number: str
    placed: tuple[Placed, ...]

    @property
    def words(self) -> list[str]:
        """Of the lines, in reading order."""
        return [word for line in self.lines for word in line]


def compose(rng: np.random.Generator, layout: Layout, test: bool, framed: bool = True) -> TextPage:
    """A page, or with `framed` False a note; with at least one word that can be asked for by the word before it.

    One whose heading is wider than the page is composed again, for other words.
    """
    while True:
        page = _compose(rng, layout, test, framed)
        if _asked_after(page) and _fits(page):
            return page


def _compose(rng: np.random.Generator, layout: Layout, test: bool, framed: bool) -> TextPage:
    face = faces(layout.fonts)[int(rng.integers(len(faces(layout.fonts))))]
    size = int(rng.integers(layout.sizes[0], layout.sizes[1] + 1))
    side = layout.side if framed else layout.tile
    topic = _topic(rng, test)
    words = _prose(rng, topic, shuffled=not test and rng.random() < SHUFFLED)
    room = _room(side, size, framed)
    count = int(rng.integers(min(FEWEST_LINES, room), room + 1))
    lines = list(islice(_broken(words, face, size, side - 2 * MARGIN), count))
    heading = number = ""
    placed: list[Placed] = []
    top = MARGIN
    if framed:
        sentence = topic[int(rng.integers(len(topic)))]
        start = int(rng.integers(len(sentence) - 1))
        heading = " ".join(bare(word) for word in sentence[start : start + 2])
        number = str(rng.integers(1, 1000))
        placed += _set(heading.split(), face, _heading_size(size), MARGIN, top + _heading_size(size))
        placed += _set([number], face, size, side / 2 - width(face, size, number) / 2, side - MARGIN)
        top += _pitch(_heading_size(size)) + size // 2
    for index, line in enumerate(lines):
        placed += _set(line, face, size, MARGIN, top + size + index * _pitch(size))
    return TextPage(side, face, heading, tuple(lines), number, tuple(placed))


def _topic(rng: np.random.Generator, test: bool) -> tuple[tuple[str, ...], ...]:
    """Drawn in proportion to its words."""
    every = topics(test)
    ends = np.cumsum([sum(map(len, topic)) for topic in every])
    return every[int(np.searchsorted(ends, rng.integers(ends[-1]), side="right"))]


def _prose(rng: np.random.Generator, topic: tuple[tuple[str, ...], ...], shuffled: bool) -> list[str]:
    """The topic's words from a sentence on, around its end; or in random order."""
    start = int(rng.integers(len(topic)))
    words = [word for sentence in topic[start:] + topic[:start] for word in sentence]
    return [words[index] for index in rng.permutation(len(words))] if shuffled else words


def _broken(words: list[str], face: Face, size: int, room: float) -> Iterator[tuple[str, ...]]:
    """Lines of at most `room` pixels; a word that is wider than a line is left out."""
    line: list[str] = []
    used = 0.0
    for word in words:
        advance = width(face, size, word) + _space(size)
        if advance > room:
            continue
        if used + advance > room + _space(size):
            yield tuple(line)
            line, used = [], 0.0
        line.append(word)
        used += advance
    yield tuple(line)


def _set(words: Sequence[str], face: Face, size: int, x: float, y: float) -> list[Placed]:
    placed = []
    for word in words:
        placed.append(Placed(word, x, y, size))
        x += width(face, size, word) + _space(size)
    return placed


def _space(size: int) -> float:
    return 0.35 * size


def _pitch(size: int) -> int:
    return round(1.3 * size)


def _heading_size(size: int) -> int:
    return round(1.2 * size)


def _room(side: int, size: int, framed: bool) -> int:
    """The lines that a sheet has room for."""
    frame = _pitch(_heading_size(size)) + size // 2 + _pitch(size) if framed else 0
    return (side - 2 * MARGIN - frame) // _pitch(size)


def draw(rng: np.random.Generator, page: TextPage) -> Image.Image:
    """The sheet as a greyscale image: dark ink on light paper."""
    paper, ink = int(rng.integers(200, 256)), int(rng.integers(0, 70))
    image = Image.new("L", (page.side, page.side), paper)
    canvas = ImageDraw.Draw(image)
    for placed in page.placed:
        canvas.text((placed.x, placed.y), placed.word, ink, font(page.face, placed.size), anchor="ls")
    return image


def ask(rng: np.random.Generator, page: TextPage, kind: str) -> Question:
    """A question of one of KINDS about a page. Answers are words without the punctuation around them."""
    if kind == "after":
        places = _asked_after(page)
        place = places[int(rng.integers(len(places)))]
        words = page.words
        return Question(kind, f'Which word comes after "{bare(words[place])}"?', bare(words[place + 1]))
    if kind in ("first", "last"):
        number = int(rng.integers(len(page.lines)))
        word = page.lines[number][0 if kind == "first" else -1]
        return Question(kind, f"What is the {kind} word of line {number + 1} below the heading?", bare(word))
    if kind == "heading":
        return Question(kind, "What is the heading?", page.heading)
    if kind == "number":
        return Question(kind, "Which number is at the bottom?", page.number)
    return Question(kind, "How many lines are between the heading and the number?", str(len(page.lines)))


def _fits(page: TextPage) -> bool:
    """Whether every word ends before the right margin."""
    ends = (placed.x + width(page.face, placed.size, placed.word) for placed in page.placed)
    return max(ends) <= page.side - MARGIN


def _asked_after(page: TextPage) -> list[int]:
    """The places of the words that can be asked for by the word before them."""
    return _single(page.words, page.heading.split())


def _single(words: Sequence[str], elsewhere: Sequence[str] = ()) -> list[int]:
    """The places of words of two letters or more that occur once, in any case, here and elsewhere; not the last's."""
    plain = [bare(word).lower() for word in words]
    counts = Counter([*plain, *(word.lower() for word in elsewhere)])
    return [place for place, word in enumerate(plain[:-1]) if len(word) > 1 and counts[word] == 1]


def _ask_without_page(rng: np.random.Generator) -> Question:
    """The word after a word of some prose that is given as text."""
    words: list[str] = []
    while not (places := _single(words)):
        words = _prose(rng, _topic(rng, test=False), shuffled=False)[: int(rng.integers(8, 30))]
    place = places[int(rng.integers(len(places)))]
    text = f'{" ".join(words)}\nWhich word comes after "{bare(words[place])}"?'
    return Question("text", text, bare(words[place + 1]))


def _sample(rng: np.random.Generator, stage: str, layout: Layout) -> tuple[Image.Image | None, tuple[Turn, ...]]:
    """A note to read in stage 1; later a page with questions, or a question about a sentence."""
    if stage == "stage1":
        note = compose(rng, layout, test=False, framed=False)
        turns = (Turn("human", f"<image>\n{CAPTION}"), Turn("gpt", " ".join(note.words)))
        return draw(rng, note), turns
    if rng.random() < TEXT_SHARE:
        question = _ask_without_page(rng)
        return None, (Turn("human", question.text), Turn("gpt", question.answer))
    page = compose(rng, layout, test=False)
    kinds = rng.permutation(["after", "after", *rng.choice(KINDS[1:], QUESTIONS - 2, replace=False)])
    return draw(rng, page), conversation([ask(rng, page, str(kind)) for kind in kinds])


def _test(rng: np.random.Generator, index: int, layout: Layout) -> tuple[Image.Image, tuple[Question, ...]]:
    """A page of a test topic, an `after` question and one of the other kinds."""
    page = compose(rng, layout, test=True)
    return draw(rng, page), tuple(ask(rng, page, kind) for kind in ("after", KINDS[1 + index % (len(KINDS) - 1)]))


def text_pages(layout: Layout) -> Content:
    """The data set of a layout."""
    description = "Pages of prose whose topics were not trained on, one question a row."
    return Content(partial(_sample, layout=layout), partial(_test, layout=layout), description)
