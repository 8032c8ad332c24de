"""Emoji pages: one to nine small drawings on a page of nine places, and all that a two-tower model can be asked of one.

A page is a square of 3 x 3 cells, each empty or with a drawing, no name twice; drawings are turned, scaled and shifted
a little. Of pages come captions, questions with short answers, pairs of pages with a statement that is true or false,
and sentences that follow from a page, contradict it or can not be told from it.

Training pages show names of the part `train` alone. Validation and test pages show names of their own part, never seen
in training, beside some of `train` that are answers to questions; those that are retrieved show names of `train` alone,
as there single drawings are for names never seen. Everything is drawn from a generator that is the row's own.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from llava.demo.emojis import Emojis

CELL, ACROSS = 32, 3
SIDE = CELL * ACROSS  # pixels
PLACES = ("top left", "top", "top right", "left", "middle", "right", "bottom left", "bottom", "bottom right")
TURN, SHIFT = 5, 1.5  # of a drawing in its cell, at most: degrees, pixels
NAMED = 3  # drawings that a caption names at most
PLACED = 2  # that one which says where names
ANSWER_NAMES = 48  # of the part `train`, that answers may be
OWNERS = ("Anna", "Tom", "my aunt", "the teacher", "a friend", "our neighbour")  # no page tells whose a thing is
KINDS = ("what", "where", "where_new", "there", "there_new", "count")
STATEMENTS = ("both", "one", "more", "all")


@dataclass(frozen=True)
class EmojiPage:
    """names: {place: name}, the places' numbers rising. style: who drew them."""

    names: Mapping[int, str]
    style: str = "openmoji"

    def place_of(self, name: str) -> str:
        """Where a drawing is."""
        return next(PLACES[place] for place, shown in self.names.items() if shown == name)


@dataclass(frozen=True)
class Source:
    """Where the pages of a split take their names from.

    emojis: all. part: of the names. alone: whether pages show names of this part alone. style: who drew them.
    """

    emojis: Emojis
    part: str
    alone: bool = False
    style: str = "openmoji"

    @property
    def answers(self) -> Sequence[str]:
        """The names that a question may have as its answer: a few of the part `train`, in every split."""
        return self.emojis.parts["train"][:ANSWER_NAMES]

    def names(self, rng: np.random.Generator, count: int) -> list[str]:
        """Different names, in random order; unless `alone`, one to half of them are answers."""
        names = self.emojis.parts[self.part]
        if self.alone:
            return _some(rng, names, count)
        chosen = _some(rng, self.answers, 1 + int(rng.integers(0, (count + 1) // 2)))
        left = [name for name in _some(rng, names, count) if name not in chosen]
        return [str(name) for name in rng.permutation(chosen + left[: count - len(chosen)])]

    def compose(self, rng: np.random.Generator, most: int = len(PLACES)) -> EmojiPage:
        """A page of one to `most` drawings."""
        count = int(rng.integers(1, most + 1))
        places = sorted(int(place) for place in rng.choice(len(PLACES), count, replace=False))
        return EmojiPage(dict(zip(places, self.names(rng, count))), self.style)

    def compose_pair(self, rng: np.random.Generator) -> tuple[EmojiPage, EmojiPage]:
        """Two pages; half of the pairs have at least one name in common."""
        left, right = self.compose(rng), self.compose(rng)
        if rng.random() < 0.5:
            names, name = dict(right.names), _some(rng, list(left.names.values()), 1)[0]
            if name not in names.values():
                names[int(rng.choice(list(names)))] = name
            right = EmojiPage(names, self.style)
        return left, right

    def absent(self, rng: np.random.Generator, *pages: EmojiPage) -> str:
        """A name of the split that is on none of the pages, drawn as theirs are."""
        shown = {name for page in pages for name in page.names.values()}
        while True:
            for name in self.names(rng, len(PLACES)):
                if name not in shown:
                    return name

    def kind(self, kind: str, name: str) -> str:
        """A question's kind, which says where its name is new to who has learned the part `train`."""
        return kind if name in self.emojis.parts["train"] else f"{kind}_new"


def draw(rng: np.random.Generator, page: EmojiPage, emojis: Emojis) -> Image.Image:
    """The page, (SIDE, SIDE) RGB, on paper of a light colour."""
    paper = Image.new("RGB", (SIDE, SIDE), tuple(int(level) for level in rng.integers(215, 256, 3)))
    for place, name in page.names.items():
        drawing = drawing_in_a_cell(rng, emojis.sprite(name, page.style))
        paper.paste(drawing, (place % ACROSS * CELL, place // ACROSS * CELL), drawing)
    return paper


def drawing_in_a_cell(rng: np.random.Generator, sprite: Image.Image) -> Image.Image:
    """(CELL, CELL) RGBA: the drawing turned, scaled and shifted, all of it inside. sprite: premultiplied (RGBa)."""
    angle = math.radians(rng.uniform(-TURN, TURN))
    cosine, sine = math.cos(angle), math.sin(angle)
    width, height = sprite.size
    extent = cosine * width + abs(sine) * height, abs(sine) * width + cosine * height
    scale = rng.uniform(0.85, 0.95) * CELL / max(extent)
    x, y = (_shifted(rng, CELL - scale * side) for side in extent)  # of its middle
    back = cosine / scale, sine / scale, -sine / scale, cosine / scale  # from the cell to the sprite
    left = width / 2 - back[0] * x - back[1] * y
    top = height / 2 - back[2] * x - back[3] * y
    matrix = (back[0], back[1], left, back[2], back[3], top)
    placed = sprite.transform((CELL, CELL), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)
    return placed.convert("RGBA")


def _shifted(rng: np.random.Generator, room: float) -> float:
    """The middle of a cell, or up to SHIFT off it where there is so much room."""
    return CELL / 2 + float(rng.uniform(-1, 1)) * min(SHIFT, room / 2)


def captions(rng: np.random.Generator, page: EmojiPage) -> list[str]:
    """One that names some drawings, and one that says where they are."""
    named = _some(rng, list(page.names.values()), NAMED)
    placed = _some(rng, list(page.names.values()), PLACED)
    return [", ".join(named), ", ".join(f"{name} at the {page.place_of(name)}" for name in placed)]


@dataclass(frozen=True)
class Question:
    """kind: of KINDS."""

    kind: str
    text: str
    answer: str


def questions(rng: np.random.Generator, page: EmojiPage, source: Source) -> list[Question]:
    """What is at a place, if an answer is; where a drawing is; whether there is one; and how many there are."""
    shown = list(page.names.values())
    page_questions = []
    if answerable := [name for name in shown if name in source.answers]:
        name = _some(rng, answerable, 1)[0]
        page_questions.append(Question("what", f"What is at the {page.place_of(name)}?", name))
    name = _some(rng, shown, 1)[0]
    page_questions.append(Question(source.kind("where", name), f"Where is the {name}?", page.place_of(name)))
    there = bool(rng.integers(2))
    name = _some(rng, shown, 1)[0] if there else source.absent(rng, page)
    page_questions.append(Question(source.kind("there", name), f"Is the {name} on the page?", "yes" if there else "no"))
    page_questions.append(Question("count", "How many drawings are there?", str(len(shown))))
    return page_questions


@dataclass(frozen=True)
class Statement:
    """kind: of STATEMENTS."""

    kind: str
    text: str
    true: bool


def statements(rng: np.random.Generator, left: EmojiPage, right: EmojiPage, source: Source) -> list[Statement]:
    """Two about a pair of pages, of different kinds, as often true as false where the pages leave the choice."""
    kinds = [str(kind) for kind in rng.permutation(STATEMENTS)[:2]]
    return [_statement(rng, kind, left, right, source) for kind in kinds]


def _statement(rng: np.random.Generator, kind: str, left: EmojiPage, right: EmojiPage, source: Source) -> Statement:
    sides = [list(page.names.values()) for page in (left, right)]
    shared = [name for name in sides[0] if name in sides[1]]
    single = [name for side in sides for name in side if name not in shared]
    true = bool(rng.integers(2))
    if kind == "both":
        name = _some(rng, shared if true and shared else single or shared, 1)[0]
        return Statement(kind, f"Both pages show the {name}.", name in shared)
    if kind == "one":
        name = _some(rng, single or shared, 1)[0] if true else source.absent(rng, left, right)
        return Statement(kind, f"One of the pages alone shows the {name}.", name in single)
    if kind == "more":
        side = int(rng.integers(2))
        text = f"The {('left', 'right')[side]} page shows more drawings than the {('right', 'left')[side]} one."
        return Statement(kind, text, len(sides[side]) > len(sides[1 - side]))
    count = len(sides[0]) + len(sides[1])
    claimed = count if true else max(1, count + int(rng.choice((-2, -1, 1, 2))))
    return Statement(kind, f"The pages show {claimed} drawings.", claimed == count)


@dataclass(frozen=True)
class Sentence:
    """label: contradiction, neutral or entailment."""

    text: str
    label: str


def sentences(rng: np.random.Generator, page: EmojiPage, source: Source) -> list[Sentence]:
    """One of each label, in random order."""
    shown = list(page.names.values())
    name = _some(rng, shown, 1)[0]
    true = [f"The {name} is at the {page.place_of(name)}.", f"The page shows the {name}."]
    other = _some(rng, shown, 1)[0]
    elsewhere = [place for place in PLACES if place != page.place_of(other)]
    false = [
        f"The {other} is at the {_some(rng, elsewhere, 1)[0]}.",
        f"The page shows the {source.absent(rng, page)}.",
    ]
    open_name = _some(rng, shown, 1)[0]
    drawn = [
        Sentence(_some(rng, true, 1)[0], "entailment"),
        Sentence(_some(rng, false, 1)[0], "contradiction"),
        Sentence(f"The {open_name} belongs to {_some(rng, OWNERS, 1)[0]}.", "neutral"),
    ]
    return [drawn[index] for index in rng.permutation(len(drawn))]


def _some(rng: np.random.Generator, values: Sequence[str], most: int) -> list[str]:
    """Up to `most` different ones, in random order."""
    return [values[int(index)] for index in rng.permutation(len(values))[:most]]
