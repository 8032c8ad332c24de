"""Crops against the released preprocessing, and what is refused."""

import json

import numpy as np
import pytest
from PIL import Image, ImageFile
from safetensors.numpy import load_file

from llava.anyres import TilingConfig, image_layout
from llava.data.images import crop_image, image_size, normalize, open_image
from llava.errors import DataError
from tests.paths import GOLDEN_DIR

CASES = json.loads((GOLDEN_DIR / "preproc_tiles.json").read_text())["images"]
MEAN = STD = (0.5, 0.5, 0.5)
GREY = (127, 127, 127)


@pytest.fixture(scope="module")
def tensors():
    return load_file(GOLDEN_DIR / "preproc_tiles.safetensors")


def crops(image: Image.Image, tiling: TilingConfig, several_images: bool = False) -> np.ndarray:
    layout = image_layout(*image.size, tiling, tile=56, side=4, several_images=several_images)
    return normalize(crop_image(image, layout, tiling, 56, several_images, GREY), MEAN, STD)


def test_the_golden_list_is_complete():
    assert len(CASES) == 6


@pytest.mark.parametrize("case", CASES, ids=lambda case: "x".join(map(str, case["size"])))
def test_crops_equal_the_released_code_bit_for_bit(tensors, case):
    name = f"img{case['i']}"
    image = Image.fromarray(tensors[f"{name}.image_uint8_hwc"])
    anyres = TilingConfig("anyres", "spatial_unpad", pinpoints=case["pinpoints"])
    assert np.array_equal(crops(image, anyres), tensors[f"{name}.tiles"])
    assert np.array_equal(crops(image, TilingConfig("square"))[0], tensors[f"{name}.square"].reshape(3, 56, 56))
    padded = tensors[f"{name}.pad"].reshape(3, 56, 56)
    assert np.array_equal(crops(image, TilingConfig("pad"))[0], padded)
    assert np.array_equal(crops(image, anyres, several_images=True)[0], padded)


def test_normalization_of_every_value_and_channel():
    values = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 3, 16, 16)
    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    expected = (values / 255 - np.array(mean).reshape(1, 3, 1, 1)) / np.array(std).reshape(1, 3, 1, 1)
    found = normalize(values, mean, std)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16"])
def test_every_color_mode_becomes_rgb(tmp_path, mode):
    path = tmp_path / ("image.tiff" if mode == "CMYK" else "image.png")
    Image.new(mode, (5, 4)).save(path)
    image = open_image(path)
    assert (image.mode, image.size) == ("RGB", (5, 4))
    assert image_size(path) == (5, 4)


@pytest.mark.parametrize("opener", [open_image, image_size])
@pytest.mark.parametrize("kind", ["png", "jpg", "bmp", "webp"])
def test_a_truncated_image_is_named(tmp_path, opener, kind, make_image, monkeypatch):
    path = tmp_path / f"page.{kind}"
    make_image().save(path)
    path.write_bytes(path.read_bytes()[:-400])
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)  # as lmms-eval leaves it
    with pytest.raises(DataError, match=f"page.{kind} cannot be decoded"):
        opener(path)


@pytest.mark.parametrize("opener", [open_image, image_size])
def test_files_that_are_no_image_are_named(tmp_path, opener, monkeypatch, make_image):
    with pytest.raises(DataError, match=r"missing.png does not exist"):
        opener(tmp_path / "missing.png")
    with pytest.raises(DataError, match="is a folder"):
        opener(tmp_path)
    (tmp_path / "text.png").write_text("no pixels here")
    with pytest.raises(DataError, match=r"text.png is not an image that Pillow can read"):
        opener(tmp_path / "text.png")
    make_image().save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(DataError, match=r"bomb.png is refused: .*7000 pixels"):
        opener(tmp_path / "bomb.png")
