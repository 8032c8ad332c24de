"""RandAugment (Cubuk et al., 2020, arXiv:1909.13719) with Pillow's operations, as METER and ManagerTower use it.

Two operations of a list are drawn, and each is done with probability 0.5, at magnitude 7 of 10. The reference does them
with OpenCV, and some of them differently: see tests/data/pairs/test_augment.py.
"""

from collections.abc import Callable

from PIL import Image, ImageEnhance, ImageOps

from llava.data.pairs.draws import Draws

COUNT, MAGNITUDE, HIGHEST, CHANCE = 2, 7, 10, 0.5
FILL = (128, 128, 128)  # of what an image is moved away from
Operation = Callable[[Image.Image, int, bool], Image.Image]  # of an RGB image, the magnitude, and whether it is negated


def _enhanced(enhancer: type) -> Operation:
    def enhance(image: Image.Image, magnitude: int, negative: bool) -> Image.Image:
        return enhancer(image).enhance(0.1 + 1.8 * magnitude / HIGHEST)

    return enhance


def _affine(image: Image.Image, matrix: tuple[float, ...]) -> Image.Image:
    """matrix: from a place in the result to one in the image, (x, y) -> (ax + by + c, dx + ey + f)."""
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR, fillcolor=FILL)


def _signed(value: float, negative: bool) -> float:
    return -value if negative else value


def _shear_x(image: Image.Image, magnitude: int, negative: bool) -> Image.Image:
    return _affine(image, (1, _signed(0.3 * magnitude / HIGHEST, negative), 0, 0, 1, 0))


def _shear_y(image: Image.Image, magnitude: int, negative: bool) -> Image.Image:
    return _affine(image, (1, 0, 0, _signed(0.3 * magnitude / HIGHEST, negative), 1, 0))


def _translate_x(image: Image.Image, magnitude: int, negative: bool) -> Image.Image:
    return _affine(image, (1, 0, _signed(magnitude, negative), 0, 1, 0))  # pixels, of whatever size the image is


def _translate_y(image: Image.Image, magnitude: int, negative: bool) -> Image.Image:
    return _affine(image, (1, 0, 0, 0, 1, _signed(magnitude, negative)))


def _rotate(image: Image.Image, magnitude: int, negative: bool) -> Image.Image:
    degrees = _signed(30 * magnitude / HIGHEST, negative)
    return image.rotate(degrees, Image.Resampling.BILINEAR, fillcolor=FILL)


def _solarize(image: Image.Image, magnitude: int, negative: bool) -> Image.Image:
    return ImageOps.solarize(image, int(256 * magnitude / HIGHEST))


def _posterize(image: Image.Image, magnitude: int, negative: bool) -> Image.Image:
    return ImageOps.posterize(image, int(4 * magnitude / HIGHEST))


OPERATIONS: dict[str, Operation] = {
    "Identity": lambda image, magnitude, negative: image,
    "AutoContrast": lambda image, magnitude, negative: ImageOps.autocontrast(image),
    "Equalize": lambda image, magnitude, negative: ImageOps.equalize(image),
    "Brightness": _enhanced(ImageEnhance.Brightness),
    "Sharpness": _enhanced(ImageEnhance.Sharpness),
    "ShearX": _shear_x,
    "ShearY": _shear_y,
    "TranslateX": _translate_x,
    "TranslateY": _translate_y,
    "Rotate": _rotate,
    "Solarize": _solarize,
    "Color": _enhanced(ImageEnhance.Color),
    "Contrast": _enhanced(ImageEnhance.Contrast),
    "Posterize": _posterize,
}
WITH_COLOR = tuple(OPERATIONS)
WITHOUT_COLOR = tuple(name for name in OPERATIONS if name not in ("Solarize", "Color", "Contrast", "Posterize"))


def rand_augment(image: Image.Image, names: tuple[str, ...], draws: Draws) -> Image.Image:
    """An RGB image of the same size after up to COUNT of the named operations."""
    for _ in range(COUNT):
        name, is_done, negative = names[draws.below(len(names))], draws() < CHANCE, draws() < 0.5
        if is_done:
            image = OPERATIONS[name](image, MAGNITUDE, negative)
    return image
