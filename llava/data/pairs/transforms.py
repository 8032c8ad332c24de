"""From an RGB image to the square of pixels that a two-tower model sees.

`center`: the shorter side becomes the square's, the middle is cut out (the reference's clip_pure; pre-training).
`squash`: resized without its aspect ratio (evaluation after fine-tuning).
`randaug`, `randaug_color`: a random part of the image, mirrored or not, then RandAugment without or with operations on
colors; `..._no_flip` never mirrors, for questions that ask what is left and right.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from llava.constants import CLIP_MEAN, CLIP_STD
from llava.data.images import RESAMPLING, normalize
from llava.data.pairs.augment import WITH_COLOR, WITHOUT_COLOR, rand_augment
from llava.data.pairs.draws import Draws
from llava.data.schema import TransformName

SCALE, RATIO, TRIES = (0.5, 1.0), (3 / 4, 4 / 3), 10  # of the random part: its share of the area, its width to height


@dataclass(frozen=True)
class Transform:
    """An image as `size` x `size` pixels, normalised.

    Args:
        name: see above.
        size: Pixels.
        mean: Of the three channels, on [0, 1].
        std: Likewise.
    """

    name: TransformName
    size: int
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD

    def __call__(self, image: Image.Image, draws: Draws) -> torch.Tensor:
        """float32 (3, size, size) of an RGB image. draws: what is random, in a fixed order."""
        pixels = np.asarray(self.picture(image, draws)).transpose(2, 0, 1)
        return torch.from_numpy(normalize(pixels[None], self.mean, self.std)[0])

    def picture(self, image: Image.Image, draws: Draws) -> Image.Image:
        """The square, before it is normalised."""
        if self.name == "center":
            return center(image, self.size)
        if self.name == "squash":
            return image.resize((self.size, self.size), RESAMPLING)
        image = image.resize((self.size, self.size), RESAMPLING, box=random_box(image.size, draws))
        if draws() < 0.5 and not self.name.endswith("no_flip"):
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return rand_augment(image, WITH_COLOR if "color" in self.name else WITHOUT_COLOR, draws)


def center(image: Image.Image, size: int) -> Image.Image:
    """The middle of the image, its shorter side resized to `size`, the longer cut down."""
    shorter = min(image.size)
    width, height = (size if side == shorter else int(size * side / shorter) for side in image.size)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return image.resize((width, height), RESAMPLING).crop((left, top, left + size, top + size))


def random_box(size: tuple[int, int], draws: Draws) -> tuple[int, int, int, int]:
    """A part of an image of (width, height): left, top, right, bottom (Szegedy et al., 2015, arXiv:1409.4842).

    Its share of the area and the logarithm of its width to its height are drawn from SCALE and RATIO until it lies
    inside; else it is the largest middle part whose width to height lies in RATIO.
    """
    width, height = size
    for _ in range(TRIES):
        area = width * height * draws.between(*SCALE)
        ratio = math.exp(draws.between(*map(math.log, RATIO)))
        across, down = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        left, top = draws(), draws()
        if 0 < across <= width and 0 < down <= height:
            left, top = int(left * (width - across + 1)), int(top * (height - down + 1))
            return left, top, left + across, top + down
    across, down = min(width, round(height * RATIO[1])), min(height, round(width / RATIO[0]))
    left, top = (width - across) // 2, (height - down) // 2
    return left, top, left + across, top + down
