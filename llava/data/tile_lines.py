"""Where an image is cut into tiles, the cuts drawn over it as white lines, and what a page holds of the picture."""

import base64
import io

from PIL import Image, ImageDraw

from llava.anyres import TilingConfig, best_resolution, fit_inside

Cuts = tuple[tuple[float, ...], tuple[float, ...]]  # x of those that are upright, y of those that lie; in pixels
LARGEST, SMALLEST = 1200, 400  # pixels of the longer side: what is larger shrinks, what is smaller grows by whole times
BRIGHT, DARK = 3, 5  # pixels: a white line, and a dark one below it, by which it is seen on paper
QUALITY = 88  # of JPEG
PAPER, INK = (255, 255, 255), (30, 30, 30)


def tile_cuts(tiling: TilingConfig, tile: int, size: tuple[int, int], several_images: bool) -> Cuts:
    """Where an image of (width, height) pixels is cut into tiles of `tile` pixels; nowhere where it is one crop."""
    if tiling.mode != "anyres" or several_images:
        return (), ()
    canvas = best_resolution(size, tiling.pinpoints)
    width, height, left, top = fit_inside(size, canvas)
    return _inside(canvas[0], tile, left, width, size[0]), _inside(canvas[1], tile, top, height, size[1])


def count_tiles(places: Cuts) -> int:
    """Into how many tiles an image is cut there, 1 where it is not."""
    return (len(places[0]) + 1) * (len(places[1]) + 1)


def _inside(canvas: int, tile: int, margin: int, fitted: int, length: int) -> tuple[float, ...]:
    """Of one axis: the tiles' edges on the canvas, in pixels of the image, as far as they lie in it."""
    edges = [(edge - margin) * length / fitted for edge in range(tile, canvas, tile)]
    return tuple(edge for edge in edges if 0 < edge < length)


def sized(image: Image.Image) -> Image.Image:
    """The RGB image in a size that a page can show."""
    longest = max(image.size)
    if longest > LARGEST:
        sides = [max(1, round(side * LARGEST / longest)) for side in image.size]
        return image.resize((sides[0], sides[1]), Image.Resampling.LANCZOS)
    times = max(1, SMALLEST // longest)
    return image.resize((image.width * times, image.height * times), Image.Resampling.LANCZOS)


def lined(image: Image.Image, places: Cuts) -> Image.Image:
    """As `sized`, with lines where the image is cut."""
    picture = sized(image).copy()
    draw = ImageDraw.Draw(picture)
    across, down = picture.width / image.width, picture.height / image.height
    for width, colour in ((DARK, INK), (BRIGHT, PAPER)):
        for x in places[0]:
            draw.line((round(x * across), 0, round(x * across), picture.height), fill=colour, width=width)
        for y in places[1]:
            draw.line((0, round(y * down), picture.width, round(y * down)), fill=colour, width=width)
    return picture


def jpeg_uri(picture: Image.Image) -> str:
    """The picture itself as the address that a page gives it."""
    content = io.BytesIO()
    picture.save(content, format="JPEG", quality=QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode()}"
