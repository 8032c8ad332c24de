"""One image in every form that a program may have it in becomes the same pixels, and what is none is named."""

import base64
import io
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest
import torch
from PIL import Image

from llava.data.color import to_rgb
from llava.data.given import rgb_image
from llava.data.given_video import rgb_frames
from llava.data.images import open_image
from llava.errors import DataError
from tests.data.test_image_formats import UPRIGHT, exif


def gradient(mode: str) -> Image.Image:
    """13 x 7 pixels of every value of a mode, transparent in places."""
    values = np.arange(7 * 13, dtype=np.int64).reshape(7, 13)
    if mode in ("I;16", "I", "F"):
        kinds = {"I;16": np.uint16, "I": np.int32, "F": np.float32}
        return Image.fromarray((values * 600).astype(kinds[mode]))
    bands = np.stack([values, values[::-1], values[:, ::-1], values % 7 * 30], axis=-1).astype(np.uint8)
    full = Image.fromarray(bands)
    if mode == "P transparent":
        full = full.convert("RGB").quantize(8)
        full.info["transparency"] = 3
        return full
    return full.convert(mode)


def by_all_ways(tmp_path, image: Image.Image, kind: str) -> dict:
    path = tmp_path / f"image.{kind.lower()}"
    image.save(path, kind)
    content = path.read_bytes()
    text = base64.b64encode(content).decode()
    ways = {"path": path, "text of a path": str(path), "bytes": content, "base64": text}
    return ways | {"data: URL": f"data:image/{kind.lower()};base64,{text}", "opened": Image.open(path)}


@pytest.mark.parametrize(
    ("mode", "kind"),
    [(mode, "PNG") for mode in ("1", "L", "P", "RGB", "RGBA", "LA", "P transparent", "I;16")]
    + [(mode, "TIFF") for mode in ("CMYK", "I", "F")],
)
def test_all_ways_in_give_the_same_pixels(tmp_path, mode, kind):
    image = gradient(mode)
    expected = to_rgb(image)[0]
    for way, given in by_all_ways(tmp_path, image, kind).items():
        found = rgb_image(given)
        assert (found.mode, np.array_equal(found, expected)) == ("RGB", True), way
    if mode in ("1", "L", "RGB", "RGBA", "LA", "I;16", "I"):
        array = np.asarray(image)
        tensor = torch.from_numpy(array.copy())
        ways = {"array": array, "tensor": tensor if array.ndim == 2 else tensor.permute(2, 0, 1)}
        for way, given in ways.items():
            assert np.array_equal(rgb_image(given), expected), way
    if mode in ("RGBA", "LA", "P transparent"):
        assert np.asarray(expected).max() == 255  # white, which no opaque pixel is


def test_what_is_transparent_is_white_and_sixteen_bits_are_scaled():
    """Literal values, so that the rule itself stands."""
    layers = np.array([[[10, 20, 30, 0], [10, 20, 30, 255], [0, 0, 0, 51], [7, 7, 7, 255]]], np.uint8)
    white = [[[255] * 3, [10, 20, 30], [204] * 3, [7] * 3]]
    assert np.asarray(rgb_image(layers)).tolist() == white
    assert np.asarray(rgb_image(torch.from_numpy(layers).permute(2, 0, 1))).tolist() == white
    assert np.asarray(rgb_image(Image.fromarray(layers))).tolist() == white
    assert np.asarray(rgb_image(Image.fromarray(layers).convert("RGBa")))[0, :2].tolist() == white[0][:2]
    wide = np.array([[0, 257, 25700, 65535]], np.uint16)
    assert np.asarray(rgb_image(wide))[0, :, 0].tolist() == [0, 1, 100, 255]


def test_arrays_are_taken_as_transformers_takes_them(make_image):
    image = make_image(13, 7)
    rows = np.asarray(image)
    for given in (
        rows,
        rows.transpose(2, 0, 1),
        rows.astype(np.int64),
        rows / 255,
        (rows / 255).astype(np.float32),
        rows.astype(np.float64),
        torch.from_numpy(rows.copy()),
        torch.from_numpy(rows.copy()).permute(2, 0, 1),
        torch.from_numpy(rows.copy()).permute(2, 0, 1) / 255,
    ):
        assert np.array_equal(rgb_image(given), rows)
    grey = rows[..., 0]
    for given in (grey, grey[None], grey[..., None], grey / 255, torch.from_numpy(grey.copy())):
        assert np.array_equal(rgb_image(given), np.stack([grey] * 3, -1))
    assert np.asarray(rgb_image(np.array([[True, False]])))[0, :, 0].tolist() == [255, 0]


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (3, 9), (9, 3), (3, 3), (2, 4)])
def test_where_both_ends_could_be_channels(make_image, size):
    rows = np.asarray(make_image(*size))
    assert np.array_equal(rgb_image(rows), rows)
    assert np.array_equal(rgb_image(torch.from_numpy(rows.copy()).permute(2, 0, 1)), rows)
    assert np.array_equal(rgb_image(rows.transpose(2, 0, 1), channels="channels_first"), rows)
    assert np.array_equal(rgb_image(torch.from_numpy(rows.copy()), channels="channels_last"), rows)


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_a_phones_photo_is_upright_by_all_ways(tmp_path, make_image, orientation):
    image = make_image(13, 7)
    path = tmp_path / "a.png"
    image.save(path, exif=exif(orientation))
    expected = UPRIGHT[orientation](np.asarray(image))
    for given in (path, str(path), path.read_bytes(), Image.open(path), Image.open(path).convert("RGB")):
        assert np.array_equal(rgb_image(given), expected)
        assert np.array_equal(rgb_image(rgb_image(given)), expected)


@pytest.fixture
def address():
    """Of a server: /found is a picture, /moved leads to it, all else is missing."""
    content = io.BytesIO()
    gradient("RGBA").save(content, "PNG")

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response({"/found": 200, "/moved": 302, "/text": 200}.get(self.path, 404))
            if self.path == "/moved":
                self.send_header("Location", "/found")
            self.end_headers()
            self.wfile.write({"/found": content.getvalue(), "/text": b"words"}.get(self.path, b""))

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_images_of_the_web(address):
    expected = to_rgb(gradient("RGBA"))[0]
    for place in ("found", "moved"):
        assert np.array_equal(rgb_image(f"{address}/{place}"), expected)
    with pytest.raises(DataError, match=rf"^{address}/none: the server answers 404 Not Found$"):
        rgb_image(f"{address}/none")
    with pytest.raises(DataError, match=rf"^{address}/text is not an image that Pillow can read$"):
        rgb_image(f"{address}/text")
    with pytest.raises(DataError, match=r"^http://127.0.0.1:1/a.png cannot be fetched: .*"):
        rgb_image("http://127.0.0.1:1/a.png")
    with pytest.raises(DataError, match=r"^http://\[1/a.png cannot be fetched: .*"):
        rgb_image("http://[1/a.png")


def test_what_is_no_image_is_named_in_a_line(tmp_path, make_image):
    path = tmp_path / "cut.png"
    make_image().save(path)
    path.write_bytes(path.read_bytes()[:-300])
    whole = base64.b64encode(path.read_bytes()).decode()
    for given, message in (
        (path, r"^image .*cut.png cannot be decoded: "),
        (str(path), r"^image .*cut.png cannot be decoded: "),
        (Image.open(path), r"^image .*cut.png cannot be decoded: "),
        (path.read_bytes(), r"^image 2 cannot be decoded: "),
        (f"data:image/png;base64,{whole}", r"^image 2 cannot be decoded: "),
        (f"data:image/png;base64,{whole[:-3]}", r"^image 2 is not whole base64: "),
        ("data:image/png;base64", r"^image 2 is no data: URL: "),
        ("missing.png", r"^image 2 is neither a URL, nor a file that exists, nor base64 of an image: 'missing.png'$"),
        ("abcd", r"^image 2 is neither a URL.*: 'abcd'$"),
        ("x" * 11001, r"^image 2 is neither a URL.*: 'x{60}...'$"),
        ("\0", r"^image 2 is neither a URL"),
        (tmp_path / "none.png", r"none.png does not exist"),
        (7, r"^image 2 is given as int; it may be a PIL image, "),
        (np.zeros((6, 5, 7), np.uint8), r"^image 2 has the shape \(6, 5, 7\); an image is "),
        (np.zeros(5, np.uint8), r"^image 2 has the shape \(5,\); an image is "),
        (np.zeros((0, 5, 3), np.uint8), r"^image 2 is an array \(0, 5, 3\) of uint8, no pixels"),
        (np.array([["a"]]), r"^image 2 is an array \(1, 1\) of <U1, no pixels"),
        (np.full((4, 5, 3), 300), r"^image 2 has values from 300 to 300; give floats from 0 to 1"),
        (np.full((4, 5), 1.5), r"^image 2 has values from 1.5 to 1.5; give floats"),
        (np.full((4, 5), np.nan), r"^image 2 has values from nan to nan; give floats"),
    ):
        with pytest.raises(DataError, match=message) as found:
            pytest.fail(f"{given!r:.100} was read as {rgb_image(given, 'image 2')}")
        assert len(str(found.value)) < 300 + len(str(path))


def test_videos_are_taken_as_images_are(make_image):
    frames = [make_image(13, 7, seed) for seed in range(3)]
    rows = np.stack([np.asarray(frame) for frame in frames])
    for given in (
        frames,
        rows,
        list(rows),
        rows / 255,
        torch.from_numpy(rows).permute(0, 3, 1, 2),
        list(torch.from_numpy(rows).permute(0, 3, 1, 2)),
    ):
        found = rgb_frames(given)
        assert all(np.array_equal(frame, expected) for frame, expected in zip(found, rows, strict=True))
    with pytest.raises(DataError, match=r"^video has the shape \(7, 13, 3\); a video is"):
        rgb_frames(rows[0])
    with pytest.raises(DataError, match=r"^frame 2 of video 1 is given as int"):
        rgb_frames([frames[0], 3], "video 1")


def test_ink_on_nothing_is_dark_on_white(tmp_path):
    """Of a page whose paper is transparent the ink is by no way in lost in black."""
    ink = np.zeros((40, 40, 4), np.uint8)
    ink[10:30, 18:22, 3] = 255
    page = Image.fromarray(ink)
    for way, given in by_all_ways(tmp_path, page, "PNG").items():
        pixels = np.asarray(rgb_image(given))
        assert (pixels[0, 0].tolist(), pixels[20, 20].tolist()) == ([255] * 3, [0] * 3), way
    assert np.array_equal(open_image(tmp_path / "image.png"), rgb_image(page))
