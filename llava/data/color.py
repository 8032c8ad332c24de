"""Any Pillow image to RGB, 8 bits, opaque. Ordinary RGB, L and P images become what Pillow makes of them."""

import numpy as np
from PIL import Image

from llava.errors import DataError

WIDE = 65535 / 255  # 16-bit values per 8-bit value


def to_rgb(image: Image.Image) -> tuple[Image.Image, list[str]]:
    """The image in RGB, and what was done that a user may want to know, in words.

    Values of 16 bits are scaled (Pillow's convert would clip them to white); other wide integers and floating-point
    numbers are stretched from the lowest to the highest. What is transparent shows white. Other modes, CMYK among them,
    are converted by Pillow. Raises DataError for numbers that are not finite, ValueError for modes that Pillow cannot
    convert.
    """
    if image.mode.startswith(("I", "F")):
        return _from_wide(image)
    if image.has_transparency_data:
        layered = image.convert("RGBA")
        if layered.getextrema()[3][0] < 255:
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
