"""Any Pillow image to RGB: upright, 8 bits, opaque. Ordinary RGB, L and P images become what Pillow makes of them."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import EpsImagePlugin, ExifTags, Image, ImageFile

from llava.errors import DataError

# Pillow's names of the formats that are read, wherever an image comes from: what cameras, programs and the web write.
# Pillow knows others, whose decoders nobody needs here, and one, EPS, that it hands to another program.
FORMATS = (
    *("AVIF", "BMP", "DIB", "GIF", "HEIF", "ICO", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "QOI", "TGA", "TIFF"),
    "WEBP",
)
EpsImagePlugin.gs_binary = False  # also where another library opens images in this process, nothing starts Ghostscript
WIDE = 65535 / 255  # 16-bit values per 8-bit value
# How an image is turned that was stored with this EXIF orientation; 1 is upright, other numbers mean nothing.
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
LONGEST_REASON = 200  # characters
UNPREMULTIPLIED = {"La": "LA", "RGBa": "RGBA"}  # modes that Pillow converts to this one alone


def to_rgb(image: Image.Image) -> tuple[Image.Image, list[str]]:
    """The image upright and in RGB, and what was done that a user may want to know, in words.

    It is turned as its EXIF says; the result has none, so that nothing turns it again. Values of 16 bits are scaled
    (Pillow's convert would clip them to white); other wide integers and floating-point numbers are stretched from the
    lowest to the highest. What is transparent shows white. Other modes, CMYK among them, are converted by Pillow.
    Raises DataError for an image that was opened from a file of another format than FORMATS and for numbers that are
    not finite, ValueError for modes that Pillow cannot convert.
    """
    if type(image) is Image.Image and image.mode == "RGB" and not image.info:
        return image, []
    if image.format is not None and image.format not in FORMATS:
        raise DataError(f"{image.format} is not one of the formats that are read: {', '.join(FORMATS)}")
    orientation_in_file = orientation(image) if image.format == "TIFF" else 1
    _load(image)
    turn = TURNS.get(orientation(image))
    rgb, notes = _opaque(image)
    if turn is not None:
        rgb = rgb.transpose(turn)
    if turn is not None or orientation_in_file > 1:
        notes = ["turned upright as its EXIF says", *notes]
    rgb.info = {}
    return rgb, notes


def _load(image: Image.Image) -> None:
    """Reads the pixels. Pillow turns those of a TIFF itself, wrongly where it maps the file, whose name it needs to."""
    if not isinstance(image, ImageFile.ImageFile) or image.format != "TIFF":
        image.load()
        return
    name, image.filename = image.filename, ""
    image.load()
    image.filename = name


@contextmanager
def decoding() -> Iterator[None]:
    """Whatever a decoder raises within becomes a DataError with the reason in one line.

    Damaged files make Pillow's plugins raise nearly every kind of error there is: besides OSError and SyntaxError
    RuntimeError (AVIF), struct.error, IndexError, KeyError, AttributeError, ZeroDivisionError, zlib.error, MemoryError
    for a size that a header only claims. So here, and nowhere else, no kind is let through.
    """
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split())[:LONGEST_REASON]
        spoken = isinstance(error, (OSError, EOFError, SyntaxError, ValueError, RuntimeError)) and reason
        raise DataError(reason if spoken else f"{type(error).__name__} {reason}".strip()) from error


def orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 where none is told, and for an EXIF that cannot be read."""
    try:
        with decoding():
            value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except DataError:
        return 1
    return value if value in TURNS else 1


def _opaque(image: Image.Image) -> tuple[Image.Image, list[str]]:
    if image.mode.startswith(("I", "F")):
        return _from_wide(image)
    if image.mode in UNPREMULTIPLIED:
        image = image.convert(UNPREMULTIPLIED[image.mode])
    if image.has_transparency_data:
        layered = image.convert("RGBA")
        if layered.getchannel("A").getextrema() != (255, 255):
            white = Image.new("RGBA", image.size, "white")
            return Image.alpha_composite(white, layered).convert("RGB"), ["transparency is shown on white"]
    notes = [] if image.mode != "CMYK" else ["CMYK colors are converted to RGB"]
    return image.convert("RGB"), notes


def _from_wide(image: Image.Image) -> tuple[Image.Image, list[str]]:
    """One channel of more than 8 bits: `I;16` and its byte orders, `I` (32 bits) and `F`."""
    values = np.asarray(image).astype(np.float64)
    if not np.isfinite(values).all():
        raise DataError("some of its values are not finite numbers")
    low, high = values.min(), values.max()
    if image.mode == "F" or low < 0 or high > 65535:
        scaled = (values - low) * (255 / (high - low) if high > low else 0.0)
        notes = [f"values from {low:g} to {high:g} are stretched to 8 bits"]
    else:
        scaled, notes = values / WIDE, ["16-bit values are scaled to 8 bits"]
    grey = np.rint(scaled).astype(np.uint8)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int) and (values == transparent).any():
        grey[values == transparent] = 255
        notes.append("transparency is shown on white")
    return Image.fromarray(grey).convert("RGB"), notes
