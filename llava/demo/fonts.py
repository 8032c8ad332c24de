"""The typefaces of text pages: matplotlib's, which evaluation installs anyway, and some of fontpkg's, see wheels.py."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from llava.demo.wheels import packaged_file

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont


@dataclass(frozen=True)
class Face:
    """A font file. scale: of the size that is asked for, where a face is much smaller than others of its size."""

    package: str
    path: str
    scale: float = 1.0


MATPLOTLIB = tuple(
    Face("matplotlib", f"mpl-data/fonts/ttf/{name}.ttf")
    for name in ("DejaVuSans", "DejaVuSerif", "DejaVuSansMono", "STIXGeneral", "STIXGeneralItalic", "cmr10", "cmss10")
)
FONTPKG = (
    Face("fontpkg_crimson_text", "files/CrimsonText-Regular.ttf", 1.1),
    Face("fontpkg_open_sans", "files/OpenSans[wdth,wght].ttf"),
    Face("fontpkg_roboto_slab", "files/RobotoSlab[wght].ttf"),
    Face("fontpkg_kalam", "files/Kalam-Regular.ttf", 1.1),
    Face("fontpkg_caveat", "files/Caveat[wght].ttf", 1.4),
)
FONTS = {"matplotlib": MATPLOTLIB, "all": MATPLOTLIB + FONTPKG}


@cache
def faces(fonts: str) -> Sequence[Face]:
    """`matplotlib`: its seven. `all`: fontpkg's five too; raises LlavaError where they are not installed."""
    for face in FONTS[fonts]:
        packaged_file(face.package, face.path)
    return FONTS[fonts]


@cache
def font(face: Face, size: int) -> "FreeTypeFont":
    """A face at a size in pixels. Without shaping, so that a letter is as wide in every word."""
    from PIL import ImageFont

    file = packaged_file(face.package, face.path)
    return ImageFont.truetype(str(file), round(size * face.scale), layout_engine=ImageFont.Layout.BASIC)


@cache
def width(face: Face, size: int, text: str) -> float:
    """The pixels that a word advances."""
    return font(face, size).getlength(text)
