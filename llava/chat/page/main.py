"""`llava demo-page`: a page in the browser to try a model, or two side by side. Nothing leaves the machine.

What the arguments get wrong is said before torch is imported.
"""

import argparse
import sys
from importlib.util import find_spec
from pathlib import Path

from llava.arguments import ArgumentParser
from llava.chat.settings import Settings, changed
from llava.checkpoint.folder import check_folder
from llava.constants import LOCAL_HOSTS
from llava.engine.checks import DTYPE_NAMES, SPREAD, check_dtype
from llava.errors import LlavaError

HOST, FIRST_PORT = "127.0.0.1", 7860
NEEDED = "the page needs gradio: pip install 'llava-ov-manager[page]'"


def main(argv: list[str]) -> int:
    """Returns 0 when Ctrl-C ends the page. Raises LlavaError for arguments that cannot be used."""
    args = _parser().parse_args(argv)
    models = [args.model, *([args.model2] if args.model2 else [])]
    check_dtype(args.dtype)
    if args.port is not None and not 1 <= args.port <= 65535:
        raise LlavaError(f"--port must be from 1 to 65535, found {args.port}")
    for model in models:
        check_folder(model)
    changed(Settings(), {"max_new_tokens": args.max_new_tokens}, "--")
    if find_spec("gradio") is None:
        raise LlavaError(NEEDED)
    if args.host not in LOCAL_HOSTS:
        print(f"note: whoever reaches {args.host} can use the page, without a password", file=sys.stderr)

    from llava.chat.page.serve import serve
    from llava.chat.page.visit import load_models

    loaded = load_models(models, args.device, args.dtype, args.load_4bit)
    for model in loaded:
        print(f"{model.name}: {model.engine.describe()}", file=sys.stderr)
    with serve(loaded, args.host, args.port, args.max_new_tokens) as url:
        print(f"the page is at {url}; Ctrl-C ends it", file=sys.stderr, flush=True)
        _until_interrupted()
    return 0


def _until_interrupted() -> None:
    from threading import Event

    try:
        Event().wait()
    except KeyboardInterrupt:
        print("", file=sys.stderr)


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="llava demo-page",
        description="A page in the browser to ask a model about pictures; of two models, the answers side by side.",
        epilog="Pictures stay on this machine: in memory, gone with the conversation. One answer is made at a time.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("model", type=Path, metavar="MODEL", help="checkpoint folder")
    add("model2", nargs="?", type=Path, metavar="MODEL2", help="another, which is asked the same")
    add("--host", default=HOST, metavar="NAME", help=f"where the page can be reached from (default {HOST}: from here)")
    add("--port", type=int, metavar="N", help=f"default: the first free one from {FIRST_PORT} on")
    longest = Settings().max_new_tokens
    add("--max_new_tokens", type=int, default=longest, metavar="N", help=f"the longest answer (default {longest})")
    devices = f"cpu, cuda, ..., or {SPREAD}: over all GPUs (default: a GPU if any)"
    add("--device", default="auto", metavar="NAME", help=devices)
    add("--dtype", default="auto", help=f"{', '.join(DTYPE_NAMES)} (default: 16 bits on a GPU, else float32)")
    add("--load_4bit", action="store_true", help="the language model in 4 bits (bitsandbytes)")
    return parser
