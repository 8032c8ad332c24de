"""Images and videos from paths, URLs, the clipboard and pasted lines: what is opened, what is said, what is refused."""

import hashlib
import io
import os
import struct
import zlib
from importlib.util import find_spec

import numpy as np
import pytest
from PIL import Image, ImageGrab

from llava.chat import media as module
from llava.chat.inline import begins_with_media, split_media
from llava.chat.media import MediaReader
from llava.data.video import VideoSampling
from llava.errors import DataError, LlavaError

needs_decord = pytest.mark.skipif(find_spec("decord") is None, reason="decord is not installed: the extra `video`")


@pytest.fixture
def reader():
    return MediaReader(VideoSampling(fps=2.0, frames_upbound=4))


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def bomb(side: int) -> bytes:
    """A PNG of 8x8 pixels whose header says that it is larger: it could not be decoded, but need not be."""
    small = png(Image.new("1", (8, 8)))
    header = b"IHDR" + struct.pack(">II", side, side) + small[24:29]
    return small[:12] + header + struct.pack(">I", zlib.crc32(header)) + small[33:]


def test_an_image_is_known_by_path_hash_and_size(reader, page, make_image, monkeypatch):
    monkeypatch.setenv("HOME", str(page.parent))
    monkeypatch.chdir(page.parent)
    for source in (str(page), "a page.png", "~/a page.png", f"file://{page}".replace(" ", "%20")):
        medium = reader.open(source, "image")
        assert (medium.source, medium.path, str(medium)) == (source, page, f"{source}: 120x90")
        assert medium.sha256 == hashlib.sha256(page.read_bytes()).hexdigest()
        assert np.array_equal(medium.content, make_image(120, 90))


def test_an_image_from_the_web(reader, web, make_image):
    image = make_image(50, 40)
    web.answers["/a.PNG"] = (200, {"Content-Type": "image/png"}, png(image))
    medium = reader.open(f"{web.url}/a.PNG", "image")
    assert np.array_equal(medium.content, image)
    assert medium.fetched
    assert medium.path.suffix == ".png"
    assert medium.path.read_bytes() == png(image)
    eps = io.BytesIO()
    image.save(eps, "EPS")
    web.answers["/a.png"] = (200, {}, eps.getvalue())
    with pytest.raises(DataError, match=r"/a.png is not an image that Pillow can read"):  # Pillow would run Ghostscript
        reader.open(f"{web.url}/a.png", "image")


@needs_decord
def test_a_video_is_its_frames(reader, web, make_clip):
    clip = make_clip(40, fps=8)
    medium = reader.open(str(clip), "video")
    assert str(medium) == f"{clip}: 64x48, 4 frames of 5.0 seconds"
    assert len(medium.content) == 4
    web.answers["/clip.mp4"] = (200, {}, clip.read_bytes())
    assert reader.open(f"{web.url}/clip.mp4", "video").sha256 == medium.sha256
    web.answers["/broken.mp4"] = (200, {}, clip.read_bytes()[:2000])
    with pytest.raises(LlavaError, match=rf"{web.url}/broken.mp4 is not a whole video"):
        reader.open(f"{web.url}/broken.mp4", "video")


def test_what_is_bad_is_named_in_one_line(reader, tmp_path, page, web, monkeypatch):
    monkeypatch.setitem(module.FILE_LIMITS, "image", 50_000)
    (tmp_path / "text.png").write_text("no pixels")
    photo = io.BytesIO()
    Image.open(page).save(photo, "JPEG")
    (tmp_path / "cut.jpg").write_bytes(photo.getvalue()[:-500])
    (tmp_path / "bomb.png").write_bytes(bomb(20_000))
    (tmp_path / "large.png").write_bytes(bytes(100_000))
    os.mkfifo(tmp_path / "pipe.png")
    web.answers["/page"] = (200, {}, b"<html>")
    for source, message in {
        "nowhere.png": "image nowhere.png does not exist",
        str(tmp_path): "is a folder",
        "text.png": "text.png is not an image that Pillow can read",
        "cut.jpg": "cut.jpg cannot be decoded: image file is truncated",
        "bomb.png": r"bomb.png is refused: Image size \(400000000 pixels\) exceeds limit",
        "large.png": r"large.png has 0.1 MiB; at most 0.0476837 are read",
        "pipe.png": "pipe.png is no regular file",
        "/dev/zero": "/dev/zero is no regular file",
        "x" * 300: "File name too long",
        "\0": "cannot be read",
        "file://elsewhere/a.png": "the file is on another host",
        "ftp://example.com/a.png": "only http and https",
        "http://[1/a.png": "is not a URL: Invalid IPv6",
        "file://[1/a.png": "is not a URL: Invalid IPv6",
        f"{web.url}/page": "/page is not an image that Pillow can read",
    }.items():
        with pytest.raises(DataError, match=message) as caught:
            reader.open(str(tmp_path / source) if source in os.listdir(tmp_path) else source, "image")
        assert "\n" not in str(caught.value)
    monkeypatch.setitem(module.FILE_LIMITS, "image", 10**6)
    for size in ((1, 1), (20_000, 1)):
        Image.new("RGB", size).save(tmp_path / "thin.png")
        assert reader.open(str(tmp_path / "thin.png"), "image").content.size == size


def test_what_was_done_to_an_image_is_said(reader, tmp_path):
    path = tmp_path / "a.gif"
    Image.new("L", (4, 3)).save(path, save_all=True, append_images=[Image.new("L", (4, 3), 9)])
    assert str(reader.open(str(path), "image")) == f"{path}: 4x3, the first of 2 frames"
    Image.new("RGBA", (4, 3)).save(path.with_suffix(".png"))
    assert reader.open(str(path.with_suffix(".png")), "image").notes == ("transparency is shown on white",)


def test_the_clipboard(reader, page, make_image, monkeypatch):
    def held(value):
        monkeypatch.setattr(ImageGrab, "grabclipboard", lambda: value)

    held(make_image(30, 20))
    (medium,) = reader.from_clipboard()
    assert (str(medium), medium.fetched) == ("clipboard: 30x20", True)
    held([str(page), "/etc/passwd"])
    assert [str(medium) for medium in reader.from_clipboard()] == [f"{page}: 120x90"]
    for value in (None, ["/etc/passwd"]):
        held(value)
        with pytest.raises(DataError, match="the clipboard holds no image"):
            reader.from_clipboard()

    def missing():
        raise NotImplementedError("wl-paste or xclip is required")

    monkeypatch.setattr(ImageGrab, "grabclipboard", missing)
    with pytest.raises(DataError, match="the clipboard cannot be read here: wl-paste or xclip is required"):
        reader.from_clipboard()


@pytest.mark.parametrize(
    ("line", "rest", "found"),
    [
        ("What is this?", "What is this?", []),
        ("'{page}' What is this?", "What is this?", ["{page}"]),
        ('"{page}"', "", ["{page}"]),
        ("{escaped} is  what?", "is what?", ["{page}"]),
        ("Compare b.jpg, c.webp: which?", "Compare b.jpg, c.webp: which?", []),
        (
            "Compare plain.png, and https://x.org/b.jpg?w=3!",
            "Compare , and !",
            ["plain.png", "https://x.org/b.jpg?w=3"],
        ),
        ("What does https://example.com/page say?", "What does https://example.com/page say?", []),
        ("it's plain.png, isn't it", "it's , isn't it", ["plain.png"]),
        ("/nowhere/a.png what?", "what?", ["/nowhere/a.png"]),
        ("file:///a%20b.jpg", "", ["file:///a%20b.jpg"]),
        ("./clip.mp4", "", ["./clip.mp4"]),
        ("What is http://[1/b.jpg ?", "What is http://[1/b.jpg ?", []),
        ("two  blanks\n  and a line", "two  blanks\n  and a line", []),
        ("C:\\new.png \\", "C:\\new.png \\", []),
    ],
)
def test_media_in_a_line(page, monkeypatch, line, rest, found):
    monkeypatch.chdir(page.parent)
    (page.parent / "plain.png").touch()
    names = {"page": page, "escaped": str(page).replace(" ", "\\ ")}
    split = split_media(line.format(**names))
    assert split.question == rest
    assert [source for _, source in split.media] == [source.format(**names) for source in found]
    assert {kind for kind, _ in split.media} <= {"image"} or found == ["./clip.mp4"]


def test_lines_that_begin_with_a_path(page):
    assert begins_with_media(f"'{page}' and")
    assert begins_with_media("/nowhere/a.png and")
    assert not begins_with_media("/help me with /nowhere/a.png")
    assert not begins_with_media("")
