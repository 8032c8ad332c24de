"""A case as a picture: the document's images with the tiles' boundaries as white lines, and below them the answers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from llava.data.tile_lines import INK, PAPER, Cuts, count_tiles, lined, sized
from llava.eval.cases.content import Case
from llava.eval.tiling import cuts
from llava.picture_text import set_text

MOST = 8  # images of a document that are shown
WIDTH, MARGIN, GAP, LINE, FONT_SIZE = 1000, 20, 12, 24, 17  # of the PNG, in pixels
THUMBNAIL = 470  # pixels of the longer side where there are several
FAINT, GREEN, RED = (105, 105, 105), (0, 110, 45), (190, 20, 30)
COLOURS = {"plain": INK, "faint": FAINT, "right": GREEN, "wrong": RED, "none": FAINT}
FONT = "mpl-data/fonts/ttf/DejaVuSans.ttf"  # in matplotlib: Latin, Greek, Cyrillic and more


@dataclass(frozen=True)
class Shown:
    """An image as it is shown. caption: whose tiles the lines bound. alt: what it is, for who does not see it."""

    picture: Image.Image
    caption: str
    alt: str


def show_images(images: Sequence[Image.Image], tilings: Mapping[str, dict | None]) -> list[Shown]:
    """The images of a document, one of them once for every way in which the runs cut it.

    Args:
        images: in RGB.
        tilings: of the runs, see stored_tiling.
    """
    several = len(images) > 1
    shown = []
    for number, image in enumerate(images[:MOST], start=1):
        name = f"image {number} of {len(images)}" if several else "the image"
        runs_of: dict[Cuts, list[str]] = {}
        for run, tiling in tilings.items():
            if tiling is not None:
                runs_of.setdefault(cuts(tiling, image.size, several), []).append(run)
        whole = f"one crop: {', '.join(runs_of.pop(((), ()), []))}"
        captions = [_tiles(places, runs) for places, runs in runs_of.items()]
        pictures = [lined(image, places) for places in runs_of]
        if several or not captions:
            pictures, captions = [sized(image)], [name if several else ""]
        if not several and not whole.endswith(": "):
            captions[-1] = "; ".join(filter(None, [captions[-1], whole]))
        shown += [
            Shown(picture, caption, f"{name}, {caption}" if caption not in ("", name) else name)
            for picture, caption in zip(pictures, captions, strict=True)
        ]
    return shown


def _tiles(places: Cuts, runs: Sequence[str]) -> str:
    return f"{count_tiles(places)} tiles: {', '.join(runs)}"


def draw_case(case: Case, shown: Sequence[Shown]) -> Image.Image:
    """An RGB picture of the case, WIDTH pixels wide."""
    font = ImageFont.truetype(_font(), FONT_SIZE, layout_engine=ImageFont.Layout.BASIC)
    placed, y = _placed([(one.picture, one.caption) for one in shown])
    words, bottom = set_text(_pieces(case), font, MARGIN, y, WIDTH - 2 * MARGIN, LINE)
    picture = Image.new("RGB", (WIDTH, bottom + MARGIN), PAPER)
    draw = ImageDraw.Draw(picture)
    for part, caption, left, top in placed:
        picture.paste(part, (left, top))
        draw.rectangle((left - 1, top - 1, left + part.width, top + part.height), outline=FAINT)
        draw.text((left, top + part.height + 3), caption, fill=FAINT, font=font.font_variant(size=FONT_SIZE - 4))
    for word in words:
        draw.text((word.x, word.y), word.text, fill=COLOURS[word.style], font=font)
    return picture


def _placed(parts: Sequence[tuple[Image.Image, str]]) -> tuple[list[tuple[Image.Image, str, int, int]], int]:
    """(picture, caption, left, top) of each, in rows, and the y below them."""
    placed, x, y, height = [], MARGIN, MARGIN, 0
    for picture, caption in parts:
        side = THUMBNAIL if len(parts) > 1 else WIDTH - 2 * MARGIN
        part = picture.copy()
        part.thumbnail((side, side), Image.Resampling.LANCZOS)
        if x > MARGIN and x + part.width > WIDTH - MARGIN:
            x, y, height = MARGIN, y + height, 0
        placed.append((part, caption, x, y))
        x += part.width + GAP
        height = max(height, part.height + LINE + GAP)
    return placed, y + height


def _pieces(case: Case) -> list[tuple[str, str]]:
    pieces = [(f"{case.name}, document {case.doc_id}\n", "faint"), (f"{case.question}\n", "plain")]
    pieces += [(f"expected: {case.expected}\n\n", "plain")]
    for answer in case.answers:
        pieces += [(f"{answer.run}: ", "plain"), (answer.text or "(no answer)", answer.verdict)]
        pieces.append((f"  {answer.verdict}, {answer.score}\n", "faint"))
    return pieces


def _font() -> Path:
    return Path(find_spec("matplotlib").submodule_search_locations[0]) / FONT
