"""A small picture of an image in a terminal that shows 24-bit color: two pixels in each character."""

import os

from PIL import Image
from rich.color import Color
from rich.console import Console
from rich.segment import Segment, Segments
from rich.style import Style

COLUMNS, LINES = 48, 14
UPPER_HALF = "▀"


def can_preview(console: Console) -> bool:
    """Whether the terminal says that it shows any color, and can print the character."""
    truecolor = os.environ.get("COLORTERM", "").lower() in ("truecolor", "24bit")
    return console.is_terminal and not console.is_dumb_terminal and truecolor and console.encoding.startswith("utf")


def preview(image: Image.Image, console: Console) -> Segments:
    """What rich prints: at most COLUMNS x LINES characters, in the image's aspect ratio."""
    width, height = min(COLUMNS, console.width - 1), 2 * LINES
    scale = min(width / image.width, height / image.height, 1.0)
    size = max(round(image.width * scale), 1), max(round(image.height * scale), 1)
    small = image.resize(size, Image.Resampling.BOX)
    segments = []
    for y in range(0, small.height, 2):
        for x in range(small.width):
            below = Color.from_rgb(*small.getpixel((x, y + 1))) if y + 1 < small.height else None
            segments.append(Segment(UPPER_HALF, Style(color=Color.from_rgb(*small.getpixel((x, y))), bgcolor=below)))
        segments.append(Segment.line())
    return Segments(segments)
