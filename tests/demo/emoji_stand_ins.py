"""Drawings for tests, which have no emoji packages: a square of a color of its own for each name."""

from functools import cache

from PIL import Image

from llava.demo.emojis import Emojis

LEVELS = (0, 40, 80, 120, 160, 200)
COLORS = {f"thing {red} {green} {blue}": (red, green, blue) for red in LEVELS for green in LEVELS for blue in LEVELS}


@cache
def sprite(name: str, style: str) -> Image.Image:
    """The color fills the drawing; of the other style it is a cross."""
    square = Image.new("RGBA", (40, 40), (*COLORS[name], 255))
    if style == "noto":
        square.paste((0, 0, 0, 0), (0, 0, 15, 15))
    return square.convert("RGBa")


STAND_INS = Emojis(tuple(COLORS), sprite)
