"""How much a request may ask of the server. Imports nothing heavy."""

import argparse
import json
import os
from dataclasses import asdict, dataclass, fields
from typing import Self

from llava.arguments import ArgumentParser
from llava.constants import FILE_LIMITS, MEBIBYTE
from llava.errors import LlavaError
from llava.printable import is_key

VARIABLE = "LLAVA_SERVE"  # what vLLM's process is told, which makes the middleware by its name alone
KEY = "LLAVA_SERVE_KEY"  # which requests must have; no flag, since the machine's other users see these
NO_URLS, PUBLIC = URLS = ("none", "public")


@dataclass(frozen=True)
class Limits:
    """pictures, videos: of a request, how many. megapixels: of a picture, by its header.

    file_mib: of a picture or video, as its bytes are. request_mib: of a request's body, in which they are base64.
    characters: of a request's texts. urls: whether those of public hosts are fetched.
    waiting: requests that wait while others are answered.
    """

    pictures: int = 16
    videos: int = 0
    megapixels: float = 64
    file_mib: int = FILE_LIMITS["image"] // MEBIBYTE
    request_mib: int = 256
    characters: int = 1_000_000
    urls: str = NO_URLS
    waiting: int = 1024


HELP = {
    "pictures": "pictures of a request",
    "videos": "videos of a request",
    "megapixels": "of a picture, which is not decoded where it has more; 89 are the most that is ever read",
    "file_mib": "MiB of a picture or video",
    "request_mib": "MiB of a request, whose pictures are base64",
    "characters": "characters of a request's texts",
    "urls": "pictures by URL: none, or those of public hosts",
    "waiting": "requests that wait for others; one more is refused",
}


LEAST = {"pictures": 0, "videos": 0, "file_mib": 1, "request_mib": 1, "characters": 1, "waiting": 0}


@dataclass(frozen=True)
class Service:
    """What is served: the model's name, which engine answers, and the limits."""

    model: str
    engine: str
    limits: Limits

    def to_json(self) -> str:
        """For VARIABLE."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """What to_json wrote."""
        values = json.loads(text)
        return cls(**values | {"limits": Limits(**values["limits"])})


def add_limits(parser: ArgumentParser) -> None:
    """The flags, one for each field of Limits."""
    group = parser.add_argument_group("limits")
    for one in fields(Limits):
        choices = URLS if one.name == "urls" else None
        metavar = None if choices else "N"
        text = f"{HELP[one.name]} (default {one.default})"
        group.add_argument(
            f"--{one.name}", type=one.type, default=one.default, choices=choices, metavar=metavar, help=text
        )


def key_of_requests() -> str | None:
    """What KEY holds, None where it is not set. Raises LlavaError for what no header can hold."""
    key = os.environ.get(KEY)
    if key is not None and not is_key(key):
        raise LlavaError(f"{KEY} must be a key of printable ASCII letters without spaces around it; unset it for none")
    return key


def limits_of(args: argparse.Namespace) -> Limits:
    """The limits that the flags say. Raises LlavaError for a number that is none."""
    limits = Limits(**{one.name: vars(args)[one.name] for one in fields(Limits)})
    for name, least in LEAST.items():
        if vars(args)[name] < least:
            raise LlavaError(f"--{name} must be at least {least}, found {vars(args)[name]}")
    if limits.megapixels <= 0:
        raise LlavaError(f"--megapixels must be above 0, found {limits.megapixels:g}")
    return limits
