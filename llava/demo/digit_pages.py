"""Digit pages: a small data set of real handwritten digits that asks a model to see a page and its details.

A page of 112x112 pixels holds two numbers of one to three digits, one in each of two rows; the places of the digits are
called a, b, c and d, e, f. The digits are scans from scikit-learn's `load_digits` (UCI, 8x8 pixels); the first 1,400
are for training, the other 397 only for testing. Each is about 10 pixels large and lies inside one patch (14 pixels) of
the tiny tower, so that the four tiles of 56 pixels show it clearly, while the whole page shrunk to 56x56 leaves a digit
of 5 pixels in the corner of a patch. A note of 56x56 pixels holds the same in one crop, for stage 1.

Everything is drawn from (seed, stream, index): a page does not depend on how many others are made.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image

from llava.data.schema import Turn
from llava.demo.pages import TEXT_SHARE, Content, Question, conversation

TILE, PATCH = 56, 14
PLACES = ("abc", "def")
MAX_DIGITS = len(PLACES[0])
TRAIN_SCANS = 1400
VARIANTS = 12  # of each scan: turned, stretched and thickened a little
KINDS = ("place", "read", "count", "compare")
CAPTION = "Read the page."


@dataclass(frozen=True)
class Sheet:
    """A square to write on. size: pixels per side. rows, columns: the patches, from the top left, of the places."""

    size: int
    rows: tuple[int, int]
    columns: tuple[int, int, int]


PAGE = Sheet(112, rows=(2, 5), columns=(1, 3, 5))
NOTE = Sheet(TILE, rows=(0, 2), columns=(0, 1, 2))


@dataclass(frozen=True)
class Stamps:
    """Digits ready to be drawn. ink: (N, PATCH, PATCH) from 0 to 1. by_label: the indices of each digit's stamps."""

    ink: np.ndarray
    by_label: tuple[np.ndarray, ...]


@cache
def stamps(test: bool) -> Stamps:
    """All variants of the training scans, or of the held-out ones."""
    from sklearn.datasets import load_digits

    scans = load_digits()
    part = slice(TRAIN_SCANS, None) if test else slice(TRAIN_SCANS)
    rng = np.random.default_rng(int(test))
    ink = [_variant(scan, rng) for scan in scans.images[part] for _ in range(VARIANTS)]
    labels = np.repeat(scans.target[part], VARIANTS)
    return Stamps(np.stack(ink), tuple(np.flatnonzero(labels == label) for label in range(10)))


def _variant(scan: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    size = int(rng.integers(9, 12))
    image = Image.fromarray(np.rint(scan * (255 / 16)).astype(np.uint8)).resize((size, size), Image.Resampling.BICUBIC)
    canvas = Image.new("L", (PATCH, PATCH))
    canvas.paste(image, ((PATCH - size) // 2, (PATCH - size) // 2))
    turned = canvas.rotate(float(rng.uniform(-10, 10)), Image.Resampling.BICUBIC)
    return np.clip(np.asarray(turned, np.float32) / 255 * rng.uniform(0.8, 1.3), 0, 1)


def draw_digits(rng: np.random.Generator, size: int, digits: list[tuple[int, int, int]], test: bool) -> np.ndarray:
    """A square page of `size` pixels, uint8: light paper, dark ink, each (digit, x, y) a pixel or so off its centre."""
    source = stamps(test)
    ink = np.zeros((size + 2 * PATCH, size + 2 * PATCH), np.float32)
    for digit, x, y in digits:
        left, top = (center + PATCH // 2 + int(rng.integers(-1, 2)) for center in (x, y))
        window = ink[top : top + PATCH, left : left + PATCH]
        np.maximum(window, source.ink[rng.choice(source.by_label[digit])], out=window)
    paper, black = rng.uniform(190, 255), rng.uniform(0, 75)
    ink = ink[PATCH : PATCH + size, PATCH : PATCH + size]
    return np.rint(paper - (paper - black) * ink).astype(np.uint8)


def draw_numbers(rng: np.random.Generator) -> tuple[str, ...]:
    """One number a row, all different, without leading zeros."""
    numbers: list[str] = []
    while len(numbers) < len(PLACES):
        length = int(rng.integers(1, MAX_DIGITS + 1))
        number = str(rng.integers(10 ** (length - 1) if length > 1 else 0, 10**length))
        if number not in numbers:
            numbers.append(number)
    return tuple(numbers)


def draw_page(rng: np.random.Generator, numbers: tuple[str, ...], sheet: Sheet, test: bool) -> Image.Image:
    """The sheet with `numbers` on it, as a greyscale image."""
    digits = [(int(digit), *center(column, row)) for row, column, digit in cells_of(numbers, sheet)]
    return Image.fromarray(draw_digits(rng, sheet.size, digits, test))


def cells_of(numbers: tuple[str, ...], sheet: Sheet) -> list[tuple[int, int, str]]:
    """(patch row, patch column, digit) of every digit."""
    return [
        (row, column, digit) for row, number in zip(sheet.rows, numbers) for column, digit in zip(sheet.columns, number)
    ]


def center(column: int, row: int) -> tuple[int, int]:
    """(x, y) in pixels of the middle of a patch."""
    return column * PATCH + PATCH // 2, row * PATCH + PATCH // 2


def read_page(numbers: tuple[str, ...]) -> str:
    """The answer to CAPTION: every place with its digit, "a4 b7 d2"."""
    return " ".join(place + digit for place, digit in places_of(numbers))


def places_of(numbers: tuple[str, ...]) -> list[tuple[str, str]]:
    """(place, digit) of every digit on the page."""
    return [(place, digit) for names, number in zip(PLACES, numbers) for place, digit in zip(names, number)]


def ask(rng: np.random.Generator, numbers: tuple[str, ...], kind: str) -> Question:
    """A question of one of KINDS about a page."""
    if kind == "place":
        places = places_of(numbers)
        place, digit = places[int(rng.integers(len(places)))]
        return Question(kind, f"Which digit is at place {place}?", digit)
    if kind == "read":
        row = int(rng.integers(len(numbers)))
        return Question(kind, f"Which number is in row {row + 1}?", numbers[row])
    if kind == "count":
        return Question(kind, "How many digits are on the page?", str(sum(map(len, numbers))))
    larger = max(range(len(numbers)), key=lambda index: int(numbers[index]))
    return Question(kind, "Which row has the larger number?", str(larger + 1))


def page_turns(rng: np.random.Generator, numbers: tuple[str, ...], places: int = 3) -> tuple[Turn, ...]:
    """A training conversation about a page: questions for `places` places and one of another kind, in random order."""
    kinds = ["place"] * places + [rng.choice(KINDS[1:])]
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
    numbers = draw_numbers(rng)
    image = draw_page(rng, numbers, NOTE if stage == "stage1" else PAGE, test=False)
    if stage == "stage1":
        return image, (Turn("human", f"<image>\n{CAPTION}"), Turn("gpt", read_page(numbers)))
    return image, page_turns(rng, numbers)


def _test(rng: np.random.Generator, index: int) -> tuple[Image.Image, tuple[Question, ...]]:
    """A page of held-out digits, a `place` question and one of the other kinds."""
    numbers = draw_numbers(rng)
    page = draw_page(rng, numbers, PAGE, test=True)
    return page, tuple(ask(rng, numbers, kind) for kind in ("place", KINDS[1 + index % (len(KINDS) - 1)]))


DIGIT_PAGES = Content(_sample, _test, "Pages of handwritten digits that were not trained on, one question a row.")
