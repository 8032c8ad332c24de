"""Crops against the released preprocessing, colors of every kind, and what is refused."""

import io
import json

import numpy as np
import pytest
from PIL import Image, ImageFile
from safetensors.numpy import load_file

from llava.anyres import TilingConfig, image_layout
from llava.data.images import RESAMPLING, crop_image, image_size, normalize, open_image, read_image
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


@pytest.mark.parametrize("size", [(700, 3), (3, 700), (257, 256), (300, 513), (56, 20), (1, 1)])
def test_padding_in_bands_equals_the_whole_square(make_image, size):
    image, color = make_image(*size), (1, 99, 250)
    square = Image.new("RGB", [max(size)] * 2, color)
    square.paste(image, ((max(size) - size[0]) // 2, (max(size) - size[1]) // 2))
    tiling = TilingConfig("pad")
    layout = image_layout(*size, tiling, tile=56, side=4, several_images=False)
    expected = np.asarray(square.resize((56, 56), RESAMPLING)).transpose(2, 0, 1)
    assert np.array_equal(crop_image(image, layout, tiling, 56, False, color)[0], expected)


def stored(image: Image.Image, kind: str = "PNG", **options) -> io.BytesIO:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file


def converted(image: Image.Image, kind: str = "PNG", **options) -> tuple[list, list[str]]:
    """The pixels of the first row after reading, and the notes."""
    found, notes = read_image(stored(image, kind, **options), "it")
    return np.asarray(found)[0].tolist(), notes


def test_ordinary_images_are_what_pillow_makes_of_them(make_image):
    photo = make_image()
    for image in (photo, photo.convert("L"), photo.convert("P"), photo.convert("1"), photo.convert("LA")):
        found, notes = read_image(stored(image), "it")
        assert (notes, np.array_equal(found, image.convert("RGB"))) == ([], True), image.mode
    found, notes = read_image(stored(photo.convert("CMYK"), "TIFF"), "it")
    assert np.array_equal(found, photo.convert("CMYK").convert("RGB"))
    assert notes == ["CMYK colors are converted to RGB"]


def test_what_is_transparent_shows_white():
    note = ["transparency is shown on white"]
    colors = [(200, 0, 100, 255), (200, 0, 100, 0), (200, 0, 100, 51)]  # opaque, invisible, a fifth
    image = Image.new("RGBA", (3, 1))
    image.putdata(colors)
    assert converted(image) == ([[200, 0, 100], [255, 255, 255], [244, 204, 224]], note)
    grey = Image.new("LA", (2, 1))
    grey.putdata([(10, 255), (10, 0)])
    assert converted(grey) == ([[10] * 3, [255] * 3], note)
    palette = Image.new("P", (2, 1))
    palette.putpalette([9, 8, 7, 1, 2, 3])
    palette.putdata([0, 1])
    assert converted(palette, transparency=1) == ([[9, 8, 7], [255] * 3], note)
    assert converted(palette) == ([[9, 8, 7], [1, 2, 3]], [])
    keyed = Image.new("RGB", (2, 1), (5, 6, 7))
    keyed.putpixel((1, 0), (50, 60, 70))
    assert converted(keyed, transparency=(5, 6, 7)) == ([[255] * 3, [50, 60, 70]], note)


def test_sixteen_bits_are_scaled_and_not_clipped():
    wide = np.array([[0, 257, 25700, 65535]], dtype=np.uint16)
    scaled, note = [[0] * 3, [1] * 3, [100] * 3, [255] * 3], ["16-bit values are scaled to 8 bits"]
    for kind in ("PNG", "TIFF"):
        assert converted(Image.fromarray(wide), kind) == (scaled, note)
    portable = io.BytesIO(b"P5 4 1 65535\n" + wide.astype(">u2").tobytes())
    assert (np.asarray(read_image(portable, "it")[0])[0].tolist(), read_image(portable, "it")[1]) == (scaled, note)
    assert converted(Image.fromarray(wide), transparency=257) == (
        [[0] * 3, [255] * 3, [100] * 3, [255] * 3],
        [*note, "transparency is shown on white"],
    )
    stretched = np.array([[-1.0, 0.0, 4.0]], dtype=np.float32)
    assert converted(Image.fromarray(stretched), "TIFF") == (
        [[0] * 3, [51] * 3, [255] * 3],
        ["values from -1 to 4 are stretched to 8 bits"],
    )
    with pytest.raises(DataError, match="it cannot be decoded: some of its values are not finite"):
        converted(Image.fromarray(np.array([[np.nan, 1.0]], dtype=np.float32)), "TIFF")


def test_of_an_animation_the_first_frame_is_taken():
    frames = [Image.new("RGB", (4, 3), color) for color in ("red", "lime", "blue")]
    animation = stored(frames[0], "GIF", save_all=True, append_images=frames[1:])
    found, notes = read_image(animation, "it")
    assert found.getpixel((0, 0)) == (255, 0, 0)
    assert notes == ["the first of 3 frames"]


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


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
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
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 6999)  # Pillow itself would warn and decode
    monkeypatch.setattr(Image.Image, "convert", lambda *_: pytest.fail("decoded"))
    with pytest.raises(DataError, match=r"bomb.png is refused: 100x70 are 7000 pixels, at most 6999 are read"):
        opener(tmp_path / "bomb.png")
