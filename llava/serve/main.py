"""`llava serve`: an OpenAI-compatible server of a model, on this machine unless it is told otherwise.

What the arguments get wrong is said before torch is imported.
"""

import argparse
import socket
import sys
from pathlib import Path

from llava.arguments import ArgumentParser
from llava.checkpoint.folder import check_folder
from llava.constants import LOCAL_HOSTS
from llava.engine.checks import DTYPE_NAMES, SPREAD, check_dtype
from llava.errors import LlavaError
from llava.serve.limits import KEY, Limits, Service, add_limits, key_of_requests, limits_of
from llava.serve.names import AUTO, ENGINES, TRANSFORMERS, VLLM
from llava.serve.with_vllm import become, check_model, check_options, vllm_python

HOST, PORT = "127.0.0.1", 8000
NEEDED = "transformers' server needs more packages: pip install 'llava-ov-manager[serve]'"
DESCRIPTION = """\
Answers /v1/chat/completions as OpenAI's servers do, whole or streamed, with vLLM where it is installed, else with
transformers' server, and says which. Requests are checked before: see the limits.
"""
EPILOG = """\
What stands behind -- is vLLM's: llava serve MODEL --engine vllm -- --max-model-len 8192 --tensor-parallel-size 2
"""


def main(argv: list[str]) -> int:
    """Returns 0 when SIGINT or SIGTERM ended the server. Raises LlavaError for arguments that cannot be used."""
    end = argv.index("--") if "--" in argv else len(argv)
    args, options = _parser().parse_args(argv[:end]), argv[end + 1 :]
    check_dtype(args.dtype)
    if not 1 <= args.port <= 65535:
        raise LlavaError(f"--port must be from 1 to 65535, found {args.port}")
    limits, key = limits_of(args), key_of_requests()
    check_folder(args.model)
    python, reason = _choice(args)
    _check_options(args, limits, options, python)
    _check_free(args.host, args.port)
    service = Service(str(args.model), TRANSFORMERS if python is None else VLLM, limits)
    print(f"{service.engine} answers at http://{args.host}:{args.port}/v1: {reason}", file=sys.stderr, flush=True)
    if args.host not in LOCAL_HOSTS and key is None:
        print(f"note: whoever reaches {args.host} can ask it; {KEY} sets a key", file=sys.stderr, flush=True)
    if python is not None:
        become(python, service, args.host, args.port, args.dtype, options)
    from llava.engine.engine import Engine

    try:
        from llava.serve.with_transformers import serve
    except ImportError as error:
        raise LlavaError(f"{NEEDED} ({error})") from None
    engine = Engine.from_pretrained(args.model, args.device or "auto", args.dtype)
    print(f"{service.model}: {engine.describe()}", file=sys.stderr, flush=True)
    serve(engine, service, args.host, args.port)
    return 0


def _choice(args: argparse.Namespace) -> tuple[str | None, str]:
    """vLLM's Python, or None where transformers answers; and why. Raises LlavaError where what is named cannot."""
    if args.engine == TRANSFORMERS:
        return None, "as --engine says"
    try:
        python = vllm_python()
        check_model(args.model)
    except LlavaError as error:
        if args.engine == VLLM:
            raise
        return None, str(error)
    return python, "as --engine says" if args.engine == VLLM else "it is installed"


def _check_options(args: argparse.Namespace, limits: Limits, options: list[str], python: str | None) -> None:
    """Raises LlavaError for what the engine cannot keep to."""
    if python is None and options:
        raise LlavaError(f"{options[0]} is for vLLM, and transformers answers")
    if python is None and limits.videos:
        raise LlavaError(f"--videos {limits.videos}: transformers' server reads no videos of a request; vLLM does")
    if python is not None:
        if args.device is not None:
            raise LlavaError("--device says nothing to vLLM, which chooses itself")
        check_options(args.model, options)


def _check_free(host: str, port: int) -> None:
    """Raises LlavaError where nobody can listen, before a model is loaded."""
    try:
        family, kind, *_, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(place)
    except (OSError, UnicodeError) as error:
        raise LlavaError(f"nothing can be served at {host}, port {port}: {error}") from None


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="llava serve",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("model", type=Path, metavar="MODEL", help="checkpoint folder; requests name it so")
    add("--engine", choices=(AUTO, *ENGINES), default=AUTO, help=f"default: {VLLM} where it can answer")
    add("--host", default=HOST, metavar="NAME", help=f"where it can be reached from (default {HOST}: from here)")
    add("--port", type=int, default=PORT, metavar="N", help=f"default {PORT}")
    devices = f"cpu, cuda, ..., or {SPREAD}: over all GPUs (default: a GPU if any); with transformers"
    add("--device", metavar="NAME", help=devices)
    add("--dtype", default="auto", help=f"{', '.join(DTYPE_NAMES)} (default: the engine's choice)")
    add_limits(parser)
    return parser
