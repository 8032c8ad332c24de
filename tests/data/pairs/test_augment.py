"""RandAugment beside the authors' numbers: tests/golden/two_tower/extras, made with OpenCV."""

import json

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from llava.data.pairs.augment import OPERATIONS, WITH_COLOR, WITHOUT_COLOR, rand_augment
from llava.data.pairs.draws import Draws, Purpose
from tests.paths import TWO_TOWER_GOLDEN_DIR

GOLDEN = load_file(TWO_TOWER_GOLDEN_DIR / "extras.safetensors")
ARGUMENTS = json.loads((TWO_TOWER_GOLDEN_DIR / "extras.json").read_text())["randaug_args"]
IMAGE = Image.fromarray(GOLDEN["randaug/input"])
# Of whole images, on 0 to 255, the mean difference: OpenCV interpolates in fixed point and blends with the fill at the
# edge, and rounds the enhanced values otherwise; of these it is less than of a wrong sign or size by a factor of six.
TOLERANCE = {"Rotate": 6.0, "ShearX": 3.5, "ShearY": 3.5, "Sharpness": 1.0}
# The reference weighs red as blue (RGB taken for BGR), and lets AutoContrast's values wrap around 255.
MISTAKEN = {"Color": 4.2, "Contrast": 0.2, "AutoContrast": None}
NAMES = sorted(name for name in GOLDEN if name.startswith("randaug/M") and name.split("/")[2] not in MISTAKEN)


def ours(name):
    _, magnitude, operation, *draw = name.split("/")
    # The reference turns, moves and shears so that its first argument tells the direction, each in its own sense.
    negative = operation in ("Rotate", "ShearX", "ShearY") if draw == ["draw0.25"] else False
    if draw == ["draw0.75"]:
        negative = operation.startswith("Translate")
    return np.asarray(OPERATIONS[operation](IMAGE, int(magnitude[1:]), negative)).astype(int)


@pytest.mark.parametrize("name", NAMES)
def test_operations_are_the_references(name):
    assert np.abs(ours(name) - GOLDEN[name]).mean() <= TOLERANCE.get(name.split("/")[2], 0)


def test_what_the_reference_does_otherwise():
    grey = np.asarray(IMAGE.convert("L").convert("RGB")).astype(float)
    color = np.asarray(IMAGE).astype(float)
    assert np.abs(ours("randaug/M7/Color") - np.clip(grey + 1.36 * (color - grey), 0, 255)).max() <= 1
    for operation, most in MISTAKEN.items():
        difference = np.abs(ours(f"randaug/M7/{operation}") - GOLDEN[f"randaug/M7/{operation}"]).mean()
        assert difference > 0
        assert most is None or difference < most
    stretched = ours("randaug/M7/AutoContrast")
    order = np.argsort(color.reshape(-1, 3), axis=0, kind="stable")
    for channel in range(3):  # contrast keeps the order of values, which a wrapped one does not
        assert (np.diff(stretched.reshape(-1, 3)[order[:, channel], channel]) >= 0).all()
        assert stretched[..., channel].min() == 0
        assert stretched[..., channel].max() >= 254


def test_the_arguments_and_the_lists():
    assert ARGUMENTS["randaug/M7/Brightness"] == [1.36]
    assert (len(WITH_COLOR), len(NAMES)) == (14, 32)
    assert set(WITH_COLOR) - set(WITHOUT_COLOR) == {"Solarize", "Color", "Contrast", "Posterize"}


def test_half_of_the_operations_are_done_and_any_is_drawn():
    # A quarter of the images keeps both operations off; Identity adds a few.
    images = [rand_augment(IMAGE, WITH_COLOR, Draws(Purpose.IMAGE, 0, 0, index)) for index in range(400)]
    same = sum(image.tobytes() == IMAGE.tobytes() for image in images)
    assert 0.25 * 400 - 30 < same < 0.32 * 400 + 30
    assert len({image.tobytes() for image in images}) > 90
    again = rand_augment(IMAGE, WITH_COLOR, Draws(Purpose.IMAGE, 0, 0, 5))
    assert again.tobytes() == images[5].tobytes()
