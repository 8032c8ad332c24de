"""Images of every format as they come: turned by EXIF, of phones, in layers, damaged."""

import base64
import io
import random
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import AvifImagePlugin, Image, ImageFile

from llava.chat.media import MediaReader
from llava.data import images
from llava.data.color import FORMATS, to_rgb
from llava.data.dataset import SupervisedDataset
from llava.data.given import rgb_image
from llava.data.images import image_size, open_image, read_header, read_image
from llava.data.inspect import inspect_sample
from llava.data.jpeg_header import plain_jpeg_size
from llava.data.schema import Sample, Turn
from llava.data.video import EVERY_SECOND
from llava.errors import DataError
from llava.eval.messages import dialogue_of_context, with_rgb_images

ORIENTATION = 274  # EXIF's tag
# The upright pixels of an image that was stored with this orientation.
UPRIGHT = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: stored[::-1].swapaxes(0, 1),
    7: lambda stored: stored[::-1, ::-1].swapaxes(0, 1),
    8: lambda stored: stored.swapaxes(0, 1)[::-1],
}
LOSSLESS = {"PNG": {}, "WEBP": {"lossless": True, "exact": True}, "TIFF": {}}
LOSSY = {"JPEG": {"quality": 100, "subsampling": 0}, "MPO": {"quality": 100}, "AVIF": {"quality": 100}}


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[ORIENTATION] = orientation
    return tags


def blocks(mode: str = "RGB") -> Image.Image:
    """48 x 32 pixels in six squares of different colors, which survive lossy formats."""
    colors = np.array([[(255, 0, 0), (0, 255, 0), (0, 0, 255)], [(0, 0, 0), (255, 255, 255), (255, 255, 0)]], np.uint8)
    return Image.fromarray(colors.repeat(16, 0).repeat(16, 1)).convert(mode)


def alike(found: Image.Image, expected: np.ndarray) -> bool:
    """Whether the squares' centers are, as far as lossy formats keep them."""
    return np.abs(np.asarray(found)[8::16, 8::16].astype(int) - expected[8::16, 8::16]).max() < 40


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("kind", [*LOSSLESS, *LOSSY])
def test_an_image_is_upright(tmp_path, kind, orientation):
    path = tmp_path / f"photo.{kind.lower()}"
    blocks().save(path, kind, exif=exif(orientation), **{**LOSSLESS, **LOSSY}[kind])
    expected = UPRIGHT[orientation](np.asarray(blocks()))
    found, notes = read_image(path, "it")
    assert found.size == expected.shape[1::-1] == image_size(path)
    assert np.array_equal(found, expected) or (kind in LOSSY and alike(found, expected))
    assert notes == (["turned upright as its EXIF says"] if orientation > 1 else [])
    assert np.array_equal(open_image(io.BytesIO(path.read_bytes())), found)
    with Image.open(path) as opened:
        assert np.array_equal(to_rgb(opened)[0], found)
    assert to_rgb(found) == (found, [])  # it is not turned again


@pytest.mark.parametrize("mode", ["1", "L", "P", "I;16", "RGBA", "CMYK"])
def test_a_tiff_of_any_mode_is_upright(tmp_path, mode):
    """Pillow maps some of these from the file, with their sides exchanged."""
    stored = blocks("L").convert(mode) if mode != "I;16" else Image.fromarray(np.asarray(blocks("L")) * np.uint16(257))
    stored.save(tmp_path / "a.tif", exif=exif(6))
    expected = UPRIGHT[6](np.asarray(to_rgb(stored)[0]))
    assert np.array_equal(open_image(tmp_path / "a.tif"), expected)


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


XMP = b"XML:com.adobe.xmp\0\0\0\0\0<x:xmpmeta><rdf:Description tiff:Orientation='6'/>".replace(b"'", b'"')


@pytest.mark.parametrize("place", ["before", "behind"])
@pytest.mark.parametrize(("kind", "turned"), [("eXIf", True), ("iTXt", True), ("tEXt", False)])
def test_where_a_png_has_its_exif(tmp_path, monkeypatch, kind, turned, place):
    """Also behind the pixels; and pixels are not decoded for the size unless such a PNG has an EXIF."""
    contents = {"eXIf": exif(6).tobytes()[6:], "iTXt": XMP, "tEXt": b"Software\0a camera"}
    plain = io.BytesIO()
    blocks().save(plain, "PNG")
    content = plain.getvalue()
    at = content.index({"before": b"IDAT", "behind": b"IEND"}[place]) - 4
    (tmp_path / "a.png").write_bytes(content[:at] + chunk(kind.encode(), contents[kind]) + content[at:])
    assert open_image(tmp_path / "a.png").size == ((32, 48) if turned else (48, 32))
    if not turned:
        monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail("decoded"))
    assert image_size(tmp_path / "a.png") == ((32, 48) if turned else (48, 32))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize(
    "broken",
    [b"", b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\0\x09\x01\x12\0\x03", b"x" * 40],
)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_broken_exif_costs_nothing(tmp_path, kind, broken):
    blocks().save(tmp_path / "a", kind, exif=broken)
    assert read_image(tmp_path / "a", "it")[1] == []
    assert image_size(tmp_path / "a") == (48, 32)


@pytest.mark.parametrize("told", [0, 9, 200])
def test_an_orientation_that_does_not_exist_is_none(tmp_path, told):
    blocks().save(tmp_path / "a.jpg", exif=exif(told))
    assert open_image(tmp_path / "a.jpg").size == image_size(tmp_path / "a.jpg") == (48, 32)


@pytest.fixture
def without_heif():
    """Pillow as it is before the first HEIC file."""
    Image.OPEN.pop("HEIF", None)
    if "HEIF" in Image.ID:
        Image.ID.remove("HEIF")


def test_heic_is_read_where_its_package_is_installed(tmp_path, monkeypatch, without_heif):
    """As phones write it: turned by the container, so that the EXIF, which says the same, must not turn it again."""
    content = (Path(__file__).parent / "phone.heic").read_bytes()
    (tmp_path / "a.heic").write_bytes(content)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "pillow_heif", None)
        for opener in (open_image, image_size):
            with pytest.raises(DataError, match=r"^image .*a.heic cannot be read: .* pip install .*\[heic\]'$"):
                opener(tmp_path / "a.heic")
    pytest.importorskip("pillow_heif")
    found, notes = read_image(tmp_path / "a.heic", "it")
    assert (found.size, notes) == ((32, 48), [])
    assert alike(found, UPRIGHT[6](np.asarray(blocks())))
    assert image_size(tmp_path / "a.heic") == (32, 48)
    assert np.array_equal(open_image(io.BytesIO(content)), found)
    with pytest.raises(DataError, match=r"^(image )?cut "):
        read_image(io.BytesIO(content[:-100]), "cut")


WRITTEN = sorted({"AVIF", "BMP", "GIF", "ICO", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "QOI", "TGA", "TIFF", "WEBP"})
REFUSED = sorted({"BLP", "DDS", "EPS", "ICNS", "IM", "MSP", "PCX", "SGI", "SPIDER", "XBM"})


def test_every_format_that_pillow_writes_is_read_and_damaged_or_refused_below():
    Image.init()
    others = {"BUFR", "GRIB", "HDF5", "PDF", "WMF"}  # no pixels of Pillow's own
    others |= {"DIB", "PALM"}  # BMP by another name; never read
    assert set(Image.SAVE) - {"HEIF"} == others | set(WRITTEN) | set(REFUSED)
    assert {*FORMATS} == {*WRITTEN, "DIB", "HEIF"}


@pytest.mark.filterwarnings("ignore:IM image format")
@pytest.mark.parametrize("kind", REFUSED)
def test_other_formats_are_refused(tmp_path, kind):
    """By whatever name; also where Pillow has opened them already."""
    path = tmp_path / "photo.jpg"
    path.write_bytes(stored(kind))
    for opener in (open_image, image_size, lambda path: read_header(path, str(path)), rgb_image):
        with pytest.raises(DataError, match=r"^\S*/photo.jpg is not an image that Pillow can read$"):
            opener(path)
    with Image.open(path) as image, pytest.raises(DataError, match=rf"photo.jpg cannot be decoded: {kind} is not one"):
        rgb_image(image)


def test_nothing_starts_ghostscript(tmp_path, monkeypatch):
    """Neither training, check, preview, chat, evaluation nor the processor, nor who opens an EPS with Pillow alone."""

    def started(*command, **_):
        pytest.fail(f"started {command}")

    for name in ("Popen", "run", "call", "check_call", "check_output"):
        monkeypatch.setattr(subprocess, name, started)
    content, path = stored("EPS"), tmp_path / "photo.jpg"
    path.write_bytes(content)
    with Image.open(path) as image, pytest.raises(OSError, match="Ghostscript"):
        image.load()
    sample = Sample("eps", (Turn("human", "<image>\nWhat?"), Turn("gpt", "It.")), ("photo.jpg",), "a.json row 1")
    dataset = SupervisedDataset([sample], None, image_folder=tmp_path)  # as training and the preview open it
    for reader in (
        lambda: dataset[0],
        lambda: MediaReader(EVERY_SECOND).open(str(path), "image"),
        *(lambda form=form: rgb_image(form) for form in (path, str(path), content, base64.b64encode(content).decode())),
        lambda: dialogue_of_context("What?", [str(path)]),
        lambda: with_rgb_images({"image": Image.open(path)}),
    ):
        with pytest.raises(DataError):
            reader()
    for decode in (False, True):
        (fault,) = inspect_sample(sample, tmp_path, decode=decode).faults
        assert (fault.kind, fault.message) == ("undecodable", f"{path} is not an image that Pillow can read")
    documents = pytest.importorskip("llava.eval.documents")
    assert documents._readable({"bytes": content, "path": None}) is None


def stored(kind: str) -> bytes:
    file = io.BytesIO()
    blocks({"BLP": "P", "MSP": "1", "XBM": "1", "SPIDER": "F"}.get(kind, "RGB")).save(file, kind)
    return file.getvalue()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", WRITTEN)
def test_whatever_is_wrong_with_a_file_is_one_line(tmp_path, kind):
    """Bytes changed, zeroed, cut away and taken out: each file is read or refused, by its size as by its pixels."""
    rng, whole, refused = random.Random(kind), stored(kind), 0
    assert read_header(io.BytesIO(whole), "it")[1] == open_image(io.BytesIO(whole)).size
    for _ in range(20):
        content, at = bytearray(whole), rng.randrange(len(whole))
        match rng.randrange(4):
            case 0:
                content[at] = rng.randrange(256)
            case 1:
                content[at : at + 64] = bytes(len(content[at : at + 64]))
            case 2:
                del content[at:]
            case 3:
                del content[at : at + 16]
        path = tmp_path / "damaged"
        path.write_bytes(content)
        size, reason = size_or_reason(open_image, path)
        by_header, _ = size_or_reason(image_size, path)
        assert by_header == size or (size is None and kind in ("JPEG", "MPO", "PNG"))  # damage in the middle of these
        assert size is not None or (str(path) in reason and "\n" not in reason)
        refused += size is None
    assert refused > 0


def size_or_reason(opener, path: Path) -> tuple[tuple[int, int] | None, str]:
    try:
        opened = opener(path)
    except DataError as error:
        return None, str(error)
    return getattr(opened, "size", opened), ""


@pytest.mark.parametrize(
    "error",
    [
        *(RuntimeError("a plugin's"), struct.error("too short"), zlib.error("bad"), KeyError("tile"), IndexError()),
        *(ZeroDivisionError("by 0"), MemoryError(), AttributeError("none"), OverflowError("wide"), AssertionError()),
    ],
    ids=lambda error: type(error).__name__,
)
def test_any_error_of_a_plugin_names_the_file(tmp_path, monkeypatch, error):
    (tmp_path / "a.avif").write_bytes(stored("AVIF"))

    def fail(*_):
        raise error

    monkeypatch.setattr(ImageFile.ImageFile, "load", fail)
    monkeypatch.setattr(AvifImagePlugin.AvifImageFile, "load", fail)
    for opener in (open_image, image_size):
        with pytest.raises(DataError, match=r"^image .*a.avif cannot be decoded: .") as found:
            opener(tmp_path / "a.avif")
        assert (str(error) or type(error).__name__) in str(found.value)


def jpeg(size: tuple[int, int] = (48, 32), mode: str = "RGB", **options) -> bytes:
    stream = io.BytesIO()
    Image.new(mode, size, 0).save(stream, "JPEG", **options)
    return stream.getvalue()


def segment(marker: int, content: bytes) -> bytes:
    return bytes([0xFF, marker]) + (len(content) + 2).to_bytes(2) + content


def pillow_size(path: Path) -> tuple[int, int] | None:
    try:
        return images._size_by_pillow(path)
    except DataError:
        return None


@pytest.mark.parametrize(
    ("content", "is_plain"),
    [
        (jpeg(), True),
        (jpeg((3000, 2)), True),
        (jpeg(mode="L"), True),
        (jpeg(mode="CMYK"), True),
        (jpeg(progressive=True), True),
        (jpeg(optimize=True, comment="words"), True),
        (jpeg(icc_profile=b"x" * 3000), True),
        (jpeg(icc_profile=b"x" * 30_000), False),
        (jpeg(exif=exif(6)), False),
        (jpeg(exif=exif(1)), False),
        (jpeg(xmp=b'<x tiff:Orientation="6"/>'), False),
        (jpeg()[:-2], False),
        (jpeg()[:300], False),
        (jpeg() + bytes(14), True),
        (jpeg() + bytes(15), False),
        (b"", False),
    ],
)
def test_the_size_of_a_plain_jpeg_is_what_pillow_says(tmp_path, content, is_plain):
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    size = plain_jpeg_size(path)
    assert (size is not None) == is_plain
    assert size is None or size == pillow_size(path)


def test_a_damaged_header_is_left_to_pillow(tmp_path):
    """Bytes of the header are changed, left out and put in; whatever is told without Pillow is what Pillow tells."""
    draw, path, told = random.Random(0), tmp_path / "a.jpg", 0
    whole = [jpeg(), jpeg(mode="L", progressive=True), jpeg(mode="CMYK", icc_profile=b"x" * 50, comment="words")]
    extra = [segment(0xE0, b"JFIF\0\1"), segment(0xE1, b"Exif\0\0II*\0"), segment(0xDB, b"\0" * 64), b"\xff", b"\0"]
    for _ in range(500):
        content = bytearray(draw.choice(whole))
        header = content.index(b"\xff\xda")
        for _ in range(draw.randint(1, 2)):
            place = draw.randrange(2, header)
            match draw.randrange(3):
                case 0:
                    content[place] = draw.choice([0, 1, 8, 12, 16, 255, draw.randrange(256)])
                case 1:
                    del content[place : place + draw.choice([1, 2, 17])]
                case 2:
                    content[place:place] = draw.choice(extra)
        path.write_bytes(content)
        size = plain_jpeg_size(path)
        told += size is not None
        assert size is None or size == pillow_size(path)
    assert 100 < told < 400


def test_an_oversized_jpeg_is_left_to_pillow(tmp_path, monkeypatch):
    (tmp_path / "a.jpg").write_bytes(jpeg())
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 48 * 32 - 1)
    with pytest.raises(DataError, match="48x32 are 1536 pixels, at most 1535 are read"):
        image_size(tmp_path / "a.jpg")
