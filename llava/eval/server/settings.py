"""Which engine answers, from flags: the model in this process, or a server by its address."""

import argparse
import os
from dataclasses import dataclass
from urllib.parse import urlsplit

from llava.arguments import ArgumentParser, unknown
from llava.errors import LlavaError
from llava.printable import is_key

TRANSFORMERS, VLLM, SERVER = "transformers", "vllm", "server"
KEY = "LLAVA_ENGINE_KEY"  # apart from the judge's: a key goes to the server that it is for
NO_KEY = "none"  # what a server without keys is sent
NOT_TOLD = "not told"  # what a server does not say of itself
BATCH_SIZE, REQUESTS = 8, 16
REFUSED = {TRANSFORMERS: ("requests",), VLLM: ("batch_size", "device", "processes")}  # flags that it cannot keep to
REFUSED_OF_URL = ("batch_size", "device", "dtype", "processes")


@dataclass(frozen=True)
class ServerSettings:
    """A server that answers, and how it is asked.

    url: the endpoint's base ("http://.../v1"). model: its name there. engine: what the run's record calls it.
    requests: at a time. dtype: that it was told to compute in, "auto" where it was told none. plain: whether it takes
    `repetition_penalty` and must be told to use none; vLLM would take the model folder's.
    """

    url: str
    model: str
    engine: str = SERVER
    requests: int = REQUESTS
    dtype: str = "auto"
    plain: bool = False

    @property
    def identity(self) -> tuple:
        """What answers depend on, beside the question: where the server runs is no part of it."""
        return self.engine, self.model, self.dtype

    @property
    def place(self) -> str:
        """Where it is, for a run's record; the address of a server of the run's own says nothing later."""
        return "this machine" if self.engine == VLLM else self.url

    @property
    def told_dtype(self) -> str:
        """What a run's record says of its precision."""
        return NOT_TOLD if self.dtype == "auto" else self.dtype


def add_engine_arguments(parser: ArgumentParser) -> None:
    """The flags that say which engine answers."""
    group = parser.add_argument_group("engine")
    group.add_argument(
        "--engine",
        default=TRANSFORMERS,
        metavar="NAME",
        help=f"{TRANSFORMERS} (default): the model in this process; {VLLM}: a server of the run's own; or the base "
        f"URL, http://.../v1, of an OpenAI-compatible server, of which --model names a model (key: {KEY})",
    )
    group.add_argument("--requests", type=int, metavar="N", help=f"to a server at a time (default {REQUESTS})")


def check_engine(args: argparse.Namespace) -> None:
    """Fills in the defaults of what only some engines take.

    Raises:
        LlavaError: for an unknown engine, and for a flag that the engine cannot keep to.
    """
    if args.engine not in REFUSED:
        if "/" not in args.engine:
            raise LlavaError(unknown("engine", args.engine, [TRANSFORMERS, VLLM, "http://HOST:PORT/v1"]))
        check_base_url(args.engine, "--engine", KEY)
    refused = REFUSED.get(args.engine, REFUSED_OF_URL)
    if wrong := [name for name in refused if vars(args)[name] not in (None, "auto")]:
        raise LlavaError(f"--{wrong[0]} says nothing to --engine {args.engine}; leave one of them out")
    if args.options and args.engine != VLLM:
        raise LlavaError(f"{args.options[0]} is for --engine {VLLM}")
    args.batch_size = args.batch_size or BATCH_SIZE
    args.processes = args.processes or 1
    args.requests = args.requests or REQUESTS


def check_base_url(url: str, whose: str, key: str) -> None:
    """Raises LlavaError for what is no base URL, and for one with a secret in it. key: where a key goes."""
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number, an unfinished IPv6 address
        usable = False
    if not usable:
        raise LlavaError(f"{whose} must be a base URL like https://host/v1")
    if parts.username or parts.password or parts.query:
        raise LlavaError(f"{whose} must hold no user, password or query; a key goes into {key}")


def base_url(url: str) -> str:
    """The address without what some add to it."""
    return url.rstrip("/").removesuffix("/chat/completions")


def key_in(name: str) -> str:
    """The key for a server, from the environment's variable of that name; NO_KEY for one that wants none."""
    key = os.environ.get(name, "").strip() or NO_KEY
    if not is_key(key):
        raise LlavaError(f"{name} holds characters that no key can have")
    return key
