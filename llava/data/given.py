"""Images in the forms that Python programs have them in, to RGB: one reader and one color rule for all."""

import base64
import binascii
import os
from collections.abc import Callable, Iterable, Sequence
from io import BytesIO
from typing import IO, Any
from urllib.parse import unquote_to_bytes

import numpy as np
import torch
from PIL import Image

from llava.constants import FILE_LIMITS, MEBIBYTE
from llava.data.color import WIDE, decoding, to_rgb
from llava.data.images import open_image
from llava.errors import DataError

WEB = ("http://", "https://")
SECONDS = 30  # of silence of a server
SHOWN = 60  # characters of a text that is no image
CHANNELS = (1, 3)  # grey and RGB, by which a tensor's are found before those of two or four channels


def rgb_image(given: Any, name: str = "image given", channels: str | None = None) -> Image.Image:
    """An RGB image from whatever it is given as, its colors and its orientation as to_rgb has them.

    given: a PIL image; a path; a text that is a URL, a data: URL, a path or base64; a file's bytes; or a numpy array or
    torch tensor: (H, W), (H, W, C) or (C, H, W), of 1 to 4 channels (grey, grey and alpha, RGB, RGBA), uint8 or other
    whole numbers from 0 to 255, floats from 0 to 1, or uint16, which is scaled. Where both ends could be channels, a
    numpy array has them last and a tensor first.
    name: for errors, where the image has no name of its own. channels: `channels_first` or `channels_last`, for arrays.
    Raises DataError, naming the image.
    """
    if isinstance(given, Image.Image):
        try:
            with decoding():
                return to_rgb(given)[0]
        except DataError as error:
            raise DataError(f"image {getattr(given, 'filename', '') or name} cannot be decoded: {error}") from None
    if isinstance(given, bytes | bytearray | memoryview):
        return _from_bytes(given, name)
    if isinstance(given, os.PathLike):
        return open_image(given)
    if isinstance(given, str):
        return _from_text(given, name)
    if is_array(given):
        return from_pixels(eight_bits(as_numpy(given), name), name, channels, torch.is_tensor(given))
    raise DataError(
        f"{name} is given as {type(given).__name__}; it may be a PIL image, a path, a URL, bytes, an array or a tensor"
    )


def is_array(given: Any) -> bool:
    """Whether it is an array of numpy or torch."""
    return isinstance(given, np.ndarray | torch.Tensor)


def is_image(given: Any) -> bool:
    """Whether it is one image, not several; of arrays by their dimensions."""
    if is_array(given):
        return given.ndim <= 3
    return isinstance(given, Image.Image | str | bytes | bytearray | memoryview | os.PathLike)


def share_out(given: Any, texts: list[str], token: str, is_one: Callable[[Any], bool]) -> list[list]:
    """One list of images (or videos) per text; DataError when placeholders and images do not match.

    given: None, one, several (shared out by the texts' placeholders), or a list per text. is_one: is_image or is_video.
    """
    thing = token.strip("<>")
    if given is None:
        given = []
    elif is_one(given):
        given = [given]
    elif not is_array(given) and not isinstance(given, list | tuple):
        raise DataError(f"{thing}s are given as {type(given).__name__}; give one, a list, or a list per prompt")
    given = list(given)
    singles = [is_one(entry) for entry in given]
    wanted = [text.count(token) for text in texts]
    if all(singles) and sum(wanted) == len(given):
        pending = iter(given)
        groups = [[next(pending) for _ in range(count)] for count in wanted]
    elif all(singles):
        groups = [given] + [[] for _ in texts[1:]]
    elif any(singles) or not all(isinstance(entry, list | tuple) or is_array(entry) for entry in given):
        kinds = ", ".join(sorted({type(entry).__name__ for entry in given}))
        raise DataError(f"{thing}s must be given as one list or as a list per prompt, found {kinds} side by side")
    else:
        groups = [list(entry) for entry in given]
    counts = [len(group) for group in groups]
    if counts != wanted:
        raise DataError(f"found {wanted} {token} placeholders in the texts but {counts} {thing}s")
    return groups


def checked_texts(text: Any) -> list[str]:
    """Prompts, from one or a list of them. DataError for anything else."""
    texts = [text] if isinstance(text, str) else list(text) if isinstance(text, list | tuple) else []
    if not texts or not all(isinstance(prompt, str) for prompt in texts):
        raise DataError(f"text must be a prompt or a list of prompts, with a place for each image; found {text!r:.100}")
    return texts


def rgb_groups(groups: Sequence[Sequence], thing: str, reader: Callable[[Any, str], Any]) -> list[list]:
    """Each entry of each group in RGB. reader: rgb_image or rgb_frames. thing: its name in errors, with its number."""
    several = len(groups) > 1
    return [
        [
            reader(entry, f"{thing} {place} of prompt {number}" if several else f"{thing} {place}")
            for place, entry in numbered(group)
        ]
        for number, group in numbered(groups)
    ]


def numbered(given: Iterable) -> Iterable[tuple[int, Any]]:
    """Each with its number, from 1."""
    return enumerate(given, start=1)


def fetch(url: str, into: IO[bytes], kind: str) -> None:
    """Writes what a URL answers into a file. kind: `image` or `video`, which says how much that may be.

    Raises DataError, naming the URL.
    """
    from huggingface_hub.utils import httpx  # the client that transformers brings, of whatever name

    size, limit = 0, FILE_LIMITS[kind]
    try:
        with httpx.stream("GET", url, follow_redirects=True, timeout=SECONDS) as response:
            response.raise_for_status()
            for piece in response.iter_bytes():
                size += len(piece)
                if size > limit:
                    raise DataError(f"{url} is larger than {limit // MEBIBYTE} MiB, the most that is fetched")
                into.write(piece)
    except httpx.HTTPStatusError as error:
        answer = error.response
        raise DataError(f"{url}: the server answers {answer.status_code} {answer.reason_phrase}".rstrip()) from None
    except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:
        raise DataError(f"{url} cannot be fetched: {' '.join(str(error).split()) or type(error).__name__}") from None


def _from_text(text: str, name: str) -> Image.Image:
    if text.startswith(WEB):
        content = BytesIO()
        fetch(text, content, "image")
        content.seek(0)
        return open_image(content, text)
    shown = repr(text if len(text) <= SHOWN else text[:SHOWN] + "...")
    if text.startswith("data:"):
        head, comma, encoded = text.partition(",")
        if not comma:
            raise DataError(f"{name} is no data: URL: {shown} has no comma")
        return _from_bytes(_decoded(encoded, name) if "base64" in head else unquote_to_bytes(encoded), name)
    if os.path.isfile(text):
        return open_image(text)
    try:
        decoded = _decoded(text, name)
    except DataError:
        decoded = b""
    if len(decoded) <= SHOWN:  # no image is so small; it is a path, some of which are base64 too
        raise DataError(f"{name} is neither a URL, nor a file that exists, nor base64 of an image: {shown}")
    return _from_bytes(decoded, name)


def _from_bytes(content: bytes | bytearray | memoryview, name: str) -> Image.Image:
    return open_image(BytesIO(content), name.removeprefix("image "))


def _decoded(text: str, name: str) -> bytes:
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise DataError(f"{name} is not whole base64: {error}") from None


def as_numpy(given: np.ndarray | torch.Tensor) -> np.ndarray:
    """The same values; of a tensor in half precision as float32."""
    if torch.is_tensor(given):
        given = given.detach().cpu()
        return (given.float() if given.is_floating_point() else given).numpy()
    return given


def eight_bits(values: np.ndarray, name: str) -> np.ndarray:
    """Pixels as uint8; whole numbers of grey images beyond that are left to to_rgb."""
    kind = values.dtype.kind
    if values.size == 0 or kind not in "buif":
        raise DataError(f"{name} is an array {values.shape} of {values.dtype}, no pixels")
    if values.dtype == np.uint8:
        return values
    if kind == "b":
        return values * np.uint8(255)
    if values.dtype == np.uint16:
        return np.rint(values / WIDE).astype(np.uint8)
    low, high = values.min(), values.max()
    if kind == "f" and low >= 0 and high <= 1:
        return np.rint(values * 255.0).astype(np.uint8)
    if low >= 0 and high <= 255 and (kind != "f" or (values == np.rint(values)).all()):
        return values.astype(np.uint8)
    if kind != "f" and values.ndim == 2 and low >= -(2**31) and high < 2**31:
        return values.astype(np.int32)
    raise DataError(f"{name} has values from {low:g} to {high:g}; give floats from 0 to 1, or whole numbers to 255")


def from_pixels(pixels: np.ndarray, name: str, channels: str | None, is_tensor: bool) -> Image.Image:
    """An RGB image from pixels as eight_bits has them. channels: see rgb_image; is_tensor: whether torch made them."""
    shape = pixels.shape
    if len(shape) == 3:
        if _channels_first(shape, name, channels, is_tensor):
            pixels = pixels.transpose(1, 2, 0)
        pixels = pixels[..., 0] if pixels.shape[2] == 1 else pixels
    if pixels.ndim != 2 and (pixels.ndim != 3 or pixels.shape[2] > 4):
        raise DataError(f"{name} has the shape {shape}; an image is (H, W), (H, W, C) or (C, H, W), C from 1 to 4")
    return to_rgb(Image.fromarray(np.ascontiguousarray(pixels)))[0]


def _channels_first(shape: tuple[int, ...], name: str, channels: str | None, is_tensor: bool) -> bool:
    if channels is not None:
        return channels == "channels_first"
    if is_tensor:
        return shape[0] in CHANNELS or (shape[2] not in CHANNELS and shape[0] <= 4)
    return shape[2] > 4
