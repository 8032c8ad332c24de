import numpy as np
import pytest
from PIL import Image

from llava.constants import CLIP_MEAN, CLIP_STD
from llava.data.pairs.draws import Draws, Purpose
from llava.data.pairs.transforms import Transform, center, random_box


def ramp(width, height):
    """Red grows from left to right, green from top to bottom."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, np.zeros_like(x)], -1).astype(np.uint8))


def draws(index=0):
    return Draws(Purpose.IMAGE, 0, 0, index)


def test_purposes_draw_other_numbers_of_the_same_key():
    assert len({Draws(purpose, 0, 0, 5)() for purpose in Purpose}) == len(Purpose) == 6


def test_center_keeps_the_middle_and_the_aspect():
    image = ramp(200, 100)
    square = np.asarray(center(image, 50))
    assert square.shape == (50, 50, 3)
    middle = np.asarray(image.resize((100, 50), Image.Resampling.BICUBIC))[:, 25:75]
    assert (square == middle).all()


def test_squash_keeps_the_whole_image():
    pixels = np.asarray(Transform("squash", 32).picture(ramp(200, 100), draws()))
    assert pixels[0, 0, 0] < 10
    assert pixels[0, -1, 0] > 245
    assert pixels[-1, 0, 1] > 245


def test_values_are_normalised_as_clip_does():
    values = Transform("squash", 4)(Image.new("RGB", (8, 8), (255, 128, 0)), draws())
    expected = (np.array([255, 128, 0]) / 255 - CLIP_MEAN) / CLIP_STD
    assert values.shape == (3, 4, 4)
    assert values[:, 0, 0].tolist() == pytest.approx(expected.tolist(), abs=1e-6)


def test_random_boxes_are_half_to_all_of_the_area():
    boxes = [random_box((640, 480), draws(index)) for index in range(200)]
    assert all(0 <= left < right <= 640 and 0 <= top < bottom <= 480 for left, top, right, bottom in boxes)
    shares = [(right - left) * (bottom - top) / (640 * 480) for left, top, right, bottom in boxes]
    ratios = [(right - left) / (bottom - top) for left, top, right, bottom in boxes]
    assert 0.49 < min(shares) < 0.55
    assert max(shares) > 0.9
    assert min(ratios) > 0.74
    assert max(ratios) < 1.35
    assert random_box((1000, 10), draws()) == (493, 0, 506, 10)  # no part of the right form: the middle


@pytest.mark.parametrize(("name", "may_flip"), [("randaug_color", True), ("randaug_color_no_flip", False)])
def test_only_transforms_that_may_mirror_do(name, may_flip):
    pictures = [np.asarray(Transform(name, 32).picture(ramp(64, 64), draws(index))).astype(int) for index in range(60)]
    mirrored = sum(picture[:, :8, 0].mean() > picture[:, -8:, 0].mean() + 60 for picture in pictures)
    assert (18 < mirrored < 36) if may_flip else mirrored < 3  # Solarize turns the brightest around as well
