"""Pictures and videos of a request: their URLs become bytes, whose size and header are looked at, never the pixels."""

import base64
import binascii
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory

from llava.constants import MEBIBYTE
from llava.data.images import read_header
from llava.errors import DataError
from llava.fetch import fetch
from llava.serve.limits import PUBLIC, Limits
from llava.serve.refusals import RefusedError

SHOWN = 60  # characters of a wrong URL
FETCHED = {"picture": "image", "video": "video"}  # in the words of fetch


def checked_url(url: str, kind: str, name: str, limits: Limits) -> str:
    """The same as a data: URL.

    kind: `picture` or `video`. name: for errors. Raises RefusedError for what is no data: URL nor one that is fetched,
    for what does not come, is too large, or is no picture.
    """
    if url[:5].lower() == "data:":
        head, comma, encoded = url.partition(",")
        if not comma or not head.lower().endswith(";base64"):
            raise RefusedError(f"{name} must be a data: URL in base64, found {_shown(url)}")
        content = _decoded(encoded, name, limits)
    else:
        content = _fetched(url, kind, name, limits)
    if kind == "picture":
        _check_picture(content, name, limits)
    return f"data:{FETCHED[kind]}/unknown;base64,{base64.b64encode(content).decode()}"


def _decoded(encoded: str, name: str, limits: Limits) -> bytes:
    if len(encoded) * 3 / 4 > limits.file_mib * MEBIBYTE + 2:  # of padding
        raise RefusedError(f"{name} has {len(encoded) * 3 / 4 / MEBIBYTE:.1f} MiB; at most {limits.file_mib} are taken")
    try:
        return base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError) as error:
        raise RefusedError(f"{name} is not whole base64: {error}") from None


def _fetched(url: str, kind: str, name: str, limits: Limits) -> bytes:
    scheme = url.partition(":")[0].lower()
    if scheme not in ("http", "https"):
        raise RefusedError(f"{name} must be a data: URL{_or_public(limits)}, found {_shown(url)}")
    if limits.urls != PUBLIC:
        raise RefusedError(f"{name}: this server fetches nothing ({_shown(url)}); send a data: URL in base64")
    with TemporaryDirectory(prefix="llava-serve-") as folder:
        file = Path(folder) / "file"
        try:
            fetch(url, file, FETCHED[kind], limits.file_mib * MEBIBYTE, public=True)
        except DataError as error:
            raise RefusedError(f"{name}: {error}") from None
        return file.read_bytes()


def _check_picture(content: bytes, name: str, limits: Limits) -> None:
    try:
        _, (width, height) = read_header(BytesIO(content), name)
    except DataError as error:
        raise RefusedError(str(error).replace(f"image {name}", name)) from None
    pixels = width * height
    if pixels > limits.megapixels * 1e6:
        raise RefusedError(
            f"{name} has {width}x{height} = {pixels / 1e6:.1f} megapixels; at most {limits.megapixels:g} are taken"
        )


def _or_public(limits: Limits) -> str:
    return ", or one of http or https" if limits.urls == PUBLIC else ""


def _shown(url: str) -> str:
    return repr(url if len(url) <= SHOWN else f"{url[:SHOWN]}...")
