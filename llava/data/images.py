"""From a file to crops: opening, checking, tiling and normalising images. Needs Pillow and numpy only."""

import os
import warnings
from collections.abc import Sequence
from contextlib import contextmanager
from functools import cache

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from llava.anyres import ImageLayout, TilingConfig, best_resolution, fit_inside
from llava.data.color import to_rgb
from llava.errors import DataError, MissingFileError, OversizedImageError

RESAMPLING = Image.Resampling.BICUBIC
ROWS_OF_BAND = 256
# Beyond Pillow's limit there is an error here; the warning, which goes before it, would be a second line of the same.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def open_image(source, name: str | None = None) -> Image.Image:
    """A decoded RGB image from a path or a binary file: the first frame, its colors converted as to_rgb says.

    Raises DataError with one line that names the file when it is missing, no image, truncated, or of more than
    Image.MAX_IMAGE_PIXELS pixels; such an image is not decoded.
    """
    with _opened(source, name or str(source)) as image:
        return to_rgb(image)[0]


def read_image(source, name: str, formats: Sequence[str] | None = None) -> tuple[Image.Image, list[str]]:
    """As open_image, and what was done that is not plain to see, in words.

    formats: Pillow's names of the formats that are read, None for all of them.
    """
    with _opened(source, name, formats) as image:
        rgb, notes = to_rgb(image)
        frames = getattr(image, "n_frames", 1)
    return rgb, ([f"the first of {frames} frames"] if frames > 1 else []) + notes


@contextmanager
def _opened(source, name: str, formats: Sequence[str] | None = None):
    """Pillow's image, its pixels not read yet; what goes wrong, also while they are read, becomes a DataError."""
    ImageFile.LOAD_TRUNCATED_IMAGES = False  # some libraries, lmms-eval among them, turn it on for the whole process
    try:
        with Image.open(source, formats=formats) as image:
            _check_pixels(image.size, name)
            yield image
    except FileNotFoundError:
        raise MissingFileError(f"image {name} does not exist") from None
    except IsADirectoryError:
        raise DataError(f"image {name} is a folder") from None
    except UnidentifiedImageError:
        raise DataError(f"{name} is not an image that Pillow can read") from None
    except OversizedImageError:
        raise
    except Image.DecompressionBombError as error:
        raise OversizedImageError(f"image {name} is refused: {error}") from None
    except (OSError, EOFError, SyntaxError, ValueError) as error:  # what Pillow's decoders raise on broken files
        raise DataError(f"image {name} cannot be decoded: {error}") from None


def _check_pixels(size: tuple[int, int], name: str) -> None:
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and size[0] * size[1] > limit:
        raise OversizedImageError(
            f"image {name} is refused: {size[0]}x{size[1]} are {size[0] * size[1]} pixels, at most {limit} are read"
        )


def image_size(path: str | os.PathLike) -> tuple[int, int]:
    """(width, height); raises DataError as open_image does, also for a file cut off at its end.

    Whole JPEG and PNG files are known by their header and their last bytes; others are decoded.
    """
    try:
        with Image.open(path) as image:
            size, kind = image.size, image.format
        _check_pixels(size, str(path))
    except OversizedImageError:
        raise
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return open_image(path).size
    if not _has_end_marker(path, kind):
        open_image(path)
    return size


def _has_end_marker(path: str | os.PathLike, kind: str | None) -> bool:
    """Whether a JPEG or PNG ends as it should; unknown, so False, for other formats."""
    marker = {"JPEG": b"\xff\xd9", "PNG": b"IEND"}.get(kind)
    if marker is None:
        return False
    with open(path, "rb") as file:
        file.seek(max(os.path.getsize(path) - 16, 0))
        return marker in file.read()


def crop_image(
    image: Image.Image, layout: ImageLayout, tiling: TilingConfig, tile: int, several_images: bool, pad_color
) -> np.ndarray:
    """The crops of an RGB image as uint8, (layout.num_crops, 3, tile, tile).

    anyres: crop 0 is the whole image without its aspect ratio; then the image, with its aspect ratio, resized into the
    best pinpoint, centred on black and cut row by row. pad (and each of several images): padded to a square with
    `pad_color`, then resized. square: resized.
    """
    if several_images or tiling.mode == "pad":
        crops = [_pad_and_resize(image, tile, pad_color)]
    else:
        crops = [image.resize((tile, tile), RESAMPLING)]
    if layout.num_crops > 1:
        crops += _tiles(image, best_resolution(image.size, tiling.pinpoints), tile)
    return np.stack([np.asarray(crop) for crop in crops]).transpose(0, 3, 1, 2)


def _tiles(image: Image.Image, resolution: tuple[int, int], tile: int) -> list[Image.Image]:
    width, height, left, top = fit_inside(image.size, resolution)
    canvas = Image.new("RGB", resolution)
    canvas.paste(image.resize((width, height), RESAMPLING), (left, top))
    return [
        canvas.crop((x, y, x + tile, y + tile))
        for y in range(0, resolution[1], tile)
        for x in range(0, resolution[0], tile)
    ]


def _pad_and_resize(image: Image.Image, tile: int, color: tuple[int, int, int]) -> Image.Image:
    """The image centred on a square of `color`, resized to a tile.

    Bit for bit what Pillow makes of the whole square, since it resizes rows first, then columns; but the square of a
    line of 20,000 pixels would take over a gigabyte, so rows are taken a band at a time.
    """
    side = max(image.size)
    left, top = (side - image.width) // 2, (side - image.height) // 2
    canvas = Image.new("RGB", (tile, side), color)
    for y in range(0, image.height, ROWS_OF_BAND):
        rows = min(ROWS_OF_BAND, image.height - y)
        band = Image.new("RGB", (side, rows), color)
        band.paste(image.crop((0, y, image.width, y + rows)), (left, 0))
        canvas.paste(band.resize((tile, rows), RESAMPLING), (0, top + y))
    return canvas.resize((tile, tile), RESAMPLING)


def normalize(crops: np.ndarray, mean: tuple[float, ...], std: tuple[float, ...]) -> np.ndarray:
    """uint8 (crops, 3, H, W) to float32 (x / 255 - mean) / std, by a table of the 256 values per channel."""
    table = _normalized_values(tuple(mean), tuple(std))
    return np.stack([table[channel][crops[:, channel]] for channel in range(3)], axis=1)


@cache
def _normalized_values(mean: tuple[float, ...], std: tuple[float, ...]) -> np.ndarray:
    values = (np.arange(256) * (1 / 255)).astype(np.float32)
    return np.stack([(values - np.float32(m)) / np.float32(s) for m, s in zip(mean, std)])
