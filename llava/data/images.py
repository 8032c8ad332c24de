"""From a file to crops: opening, checking, tiling and normalising images. Needs Pillow and numpy only."""

import os
from functools import cache

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from llava.anyres import ImageLayout, TilingConfig, best_resolution, fit_inside
from llava.errors import DataError, MissingFileError, OversizedImageError

RESAMPLING = Image.Resampling.BICUBIC


def open_image(source, name: str | None = None) -> Image.Image:
    """A decoded RGB image from a path or a binary file. Transparency is dropped, the first frame is taken.

    Raises DataError with one line that names the file when it is missing, no image, truncated or suspiciously large
    (more than twice Pillow's Image.MAX_IMAGE_PIXELS).
    """
    name = name or str(source)
    ImageFile.LOAD_TRUNCATED_IMAGES = False  # some libraries, lmms-eval among them, turn it on for the whole process
    try:
        with Image.open(source) as image:
            return image.convert("RGB")
    except FileNotFoundError:
        raise MissingFileError(f"image {name} does not exist") from None
    except IsADirectoryError:
        raise DataError(f"image {name} is a folder") from None
    except UnidentifiedImageError:
        raise DataError(f"{name} is not an image that Pillow can read") from None
    except Image.DecompressionBombError as error:
        raise OversizedImageError(f"image {name} is refused: {error}") from None
    except (OSError, SyntaxError, ValueError) as error:  # what Pillow's decoders raise on broken files
        raise DataError(f"image {name} cannot be decoded: {error}") from None


def image_size(path: str | os.PathLike) -> tuple[int, int]:
    """(width, height); raises DataError as open_image does, also for a file cut off at its end.

    Whole JPEG and PNG files are known by their header and their last bytes; others are decoded.
    """
    try:
        with Image.open(path) as image:
            size, kind = image.size, image.format
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
        crops = [_pad_to_square(image, pad_color).resize((tile, tile), RESAMPLING)]
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


def _pad_to_square(image: Image.Image, color: tuple[int, int, int]) -> Image.Image:
    side = max(image.size)
    canvas = Image.new("RGB", (side, side), color)
    canvas.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return canvas


def normalize(crops: np.ndarray, mean: tuple[float, ...], std: tuple[float, ...]) -> np.ndarray:
    """uint8 (crops, 3, H, W) to float32 (x / 255 - mean) / std, by a table of the 256 values per channel."""
    table = _normalized_values(tuple(mean), tuple(std))
    return np.stack([table[channel][crops[:, channel]] for channel in range(3)], axis=1)


@cache
def _normalized_values(mean: tuple[float, ...], std: tuple[float, ...]) -> np.ndarray:
    values = (np.arange(256) * (1 / 255)).astype(np.float32)
    return np.stack([(values - np.float32(m)) / np.float32(s) for m, s in zip(mean, std)])
