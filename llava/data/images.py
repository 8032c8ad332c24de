"""From a file to crops: opening, checking, tiling and normalising images. Needs Pillow and numpy only."""

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import IO, cast

import numpy as np
from PIL import Image, ImageFile, PngImagePlugin, UnidentifiedImageError

from llava.anyres import ImageLayout, TilingConfig, best_resolution, fit_inside
from llava.data.color import FORMATS, decoding, orientation, to_rgb
from llava.data.jpeg_header import plain_jpeg_size
from llava.errors import DataError, MissingFileError, OversizedImageError, PassingReadError
from llava.files import PASSING, check_readable

Source = str | os.PathLike[str] | IO[bytes]  # a path or a binary file
RESAMPLING = Image.Resampling.BICUBIC
ROWS_OF_BAND = 256
# Beyond Pillow's limit there is an error here; the warning, which goes before it, would be a second line of the same.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
# Of a text or a color profile in a PNG, unpacked. Pillow's limit, 1 MiB, is less than the workflows that some tools
# store there; all of a file's texts together stay within MAX_TEXT_MEMORY.
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY
warnings.filterwarnings("ignore", module=r"PIL\.")  # of EXIF and the like that is damaged while the pixels are whole
EXIF_KEYWORDS = (b"Raw profile type exif", b"XML:com.adobe.xmp")  # of texts of a PNG
LONGEST_KEYWORD = max(map(len, EXIF_KEYWORDS))
HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}


class _NoPackageError(DataError):
    """An image that another package than Pillow reads, which is not installed."""


def open_image(source: Source, name: str | None = None) -> Image.Image:
    """A decoded RGB image from a path or a binary file: the first frame, upright, its colors as to_rgb says.

    Raises DataError with one line that names the file when it is missing, no image of color.FORMATS, truncated, or of
    more than Image.MAX_IMAGE_PIXELS pixels; such an image is not decoded.
    """
    return read_image(source, name or str(source))[0]


def read_image(source: Source, name: str) -> tuple[Image.Image, list[str]]:
    """As open_image, and what was done that is not plain to see, in words."""
    with _opened(source, name) as image:
        rgb, notes = to_rgb(image)
        frames = getattr(image, "n_frames", 1)
    return rgb, ([f"the first of {frames} frames"] if frames > 1 else []) + notes


def read_header(source: Source, name: str) -> tuple[str, tuple[int, int]]:
    """(Pillow's name of the format, (width, height) of the upright image) by the first bytes; errors as open_image."""
    with _opened(source, name) as image:
        return str(image.format), _upright_size(image)


@contextmanager
def _opened(source: Source, name: str) -> Iterator[ImageFile.ImageFile]:
    """Pillow's image, its pixels not read yet; what goes wrong, also while they are read, becomes a DataError."""
    ImageFile.LOAD_TRUNCATED_IMAGES = False  # some libraries, lmms-eval among them, turn it on for the whole process
    try:
        with decoding(), _identified(source, name) as image:
            _check_pixels(image.size, name)
            yield image
    except DataError as error:
        raise _named(error.__cause__, name) or DataError(f"image {name} cannot be decoded: {error}") from None


def _named(cause: BaseException | None, name: str) -> DataError | None:
    """What is wrong with a file that was not even opened, by what Pillow raised; None for others."""
    match cause:
        case OversizedImageError() | _NoPackageError():
            return cause
        case Image.DecompressionBombError():
            return OversizedImageError(f"image {name} is refused: {cause}")
        case FileNotFoundError():
            return MissingFileError(f"image {name} does not exist")
        case IsADirectoryError():
            return DataError(f"image {name} is a folder")
        case UnidentifiedImageError():
            return DataError(f"{name} is not an image that Pillow can read")
        case OSError() if cause.errno is not None:
            kind = PassingReadError if cause.errno in PASSING else DataError
            return kind(f"image {name} cannot be read: {cause.strerror}")
    return None


def _identified(source: Source, name: str) -> ImageFile.ImageFile:
    """Pillow's image, of one of FORMATS. Of a HEIC file through pillow-heif, imported for the first of them."""
    if isinstance(source, str | os.PathLike):
        check_readable(source)
    Image.init()  # returns at once when it has been called before
    try:
        return Image.open(source, formats=[kind for kind in Image.ID if kind in FORMATS])
    except UnidentifiedImageError:
        if "HEIF" in Image.OPEN or not _is_heic(source):
            raise
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        needed = "HEIC images need pillow-heif: pip install 'llava-ov-manager[heic]'"
        raise _NoPackageError(f"image {name} cannot be read: {needed}") from None
    register_heif_opener()
    return _identified(source, name)


def _is_heic(source: Source) -> bool:
    """By the first bytes, as Apple's phones write them; source: a path or a binary file, put back to its begin."""
    if isinstance(source, str | os.PathLike):
        with open(source, "rb") as file:
            head = file.read(12)
    else:
        source.seek(0)
        head = source.read(12)
        source.seek(0)
    return head[4:8] == b"ftyp" and head[8:12] in HEIC_BRANDS


def _check_pixels(size: tuple[int, int], name: str) -> None:
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and size[0] * size[1] > limit:
        raise OversizedImageError(
            f"image {name} is refused: {size[0]}x{size[1]} are {size[0] * size[1]} pixels, at most {limit} are read"
        )


def image_size(path: str | os.PathLike) -> tuple[int, int]:
    """(width, height) of the upright image; raises DataError as open_image does, also for a file cut off at its end.

    Whole JPEG and PNG files are known by their header and their last bytes; others are decoded.
    """
    return plain_jpeg_size(path) or _size_by_pillow(path)


def _size_by_pillow(path: str | os.PathLike) -> tuple[int, int]:
    try:
        with decoding(), _identified(path, str(path)) as image:
            _check_pixels(image.size, str(path))
            if _has_end_marker(path, image.format) and not _has_late_exif(image):
                return _upright_size(image)
    except DataError as error:
        if isinstance(error.__cause__, OversizedImageError):
            raise error.__cause__ from None
    return open_image(path).size


def _has_end_marker(path: str | os.PathLike, kind: str | None) -> bool:
    """Whether a JPEG or PNG ends as it should; unknown, so False, for other formats."""
    marker = {"JPEG": b"\xff\xd9", "PNG": b"IEND"}.get(kind or "")
    if marker is None:
        return False
    with open(path, "rb") as file:
        file.seek(max(os.path.getsize(path) - 16, 0))
        return marker in file.read()


def _upright_size(image: Image.Image) -> tuple[int, int]:
    """By the header alone. Pillow has exchanged the sides of a TIFF."""
    turned = image.format != "TIFF" and _has_exif(image) and orientation(image) >= 5
    return image.size[::-1] if turned else image.size


def _has_exif(image: Image.Image) -> bool:
    """Whether Pillow can tell the EXIF by the header; of a PNG without it decodes the pixels to look behind them."""
    return image.format != "PNG" or "exif" in image.info


def _has_late_exif(image: ImageFile.ImageFile) -> bool:
    """Whether it is a PNG whose EXIF, also one in a text or XMP, Pillow tells only when the pixels are decoded."""
    if _has_exif(image):
        return False
    file = cast(IO[bytes], image.fp)  # which is open until the pixels are decoded
    file.seek(len(b"\x89PNG\r\n\x1a\n"))
    while len(head := file.read(8 + LONGEST_KEYWORD)) > 8:
        kind, keyword = head[4:8], head[8:]
        if kind == b"eXIf" or (kind in (b"tEXt", b"zTXt", b"iTXt") and keyword.startswith(EXIF_KEYWORDS)):
            return True
        file.seek(int.from_bytes(head[:4]) + len(b"CRC ") - len(keyword), os.SEEK_CUR)
    return False


def crop_image(
    image: Image.Image,
    layout: ImageLayout,
    tiling: TilingConfig,
    tile: int,
    several_images: bool,
    pad_color: tuple[int, ...],
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


def _pad_and_resize(image: Image.Image, tile: int, color: tuple[int, ...]) -> Image.Image:
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


def normalize(crops: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """uint8 (crops, 3, H, W) to float32 (x / 255 - mean) / std, by a table of the 256 values per channel."""
    table = _normalized_values(tuple(mean), tuple(std))
    return np.stack([table[channel][crops[:, channel]] for channel in range(3)], axis=1)


@cache
def _normalized_values(mean: tuple[float, ...], std: tuple[float, ...]) -> np.ndarray:
    values = (np.arange(256) * (1 / 255)).astype(np.float32)
    return np.stack([(values - np.float32(m)) / np.float32(s) for m, s in zip(mean, std)])
