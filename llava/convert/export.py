"""`llava convert export`: a checkpoint of this package becomes a folder that transformers loads without it.

Imports nothing heavy: what is wrong with the arguments and the folders is told before.
"""

from argparse import Namespace
from pathlib import Path

from llava.arguments import ArgumentParser
from llava.checkpoint.folder import NEEDED_PROCESSOR_FILES, TENSORBOARD, check_folder, has_adapters, model_type_of
from llava.convert.model_card import model_card
from llava.convert.output import check_free
from llava.convert.push import check_login, push
from llava.errors import LlavaError
from llava.sizes import in_bytes
from llava.two_tower.parts import MODEL_TYPE as TWO_TOWER_TYPE

FORMATS = ("llava_onevision", "remote_code")


def add_arguments(parser: ArgumentParser) -> None:
    """MODEL, --out, --format, --accept_differences; of the card and of the hub."""
    parser.add_argument("model", type=Path, metavar="MODEL", help="checkpoint folder of this package")
    parser.add_argument(
        "--out", required=True, type=Path, metavar="DIR", help="folder to write; must not exist, or be empty"
    )
    parser.add_argument(
        "--format",
        required=True,
        choices=FORMATS,
        help="llava_onevision: transformers' own model, for models without managers; "
        "remote_code: any model, with its modeling files, for trust_remote_code=True",
    )
    parser.add_argument(
        "--accept_differences",
        action="store_true",
        help="llava_onevision: export also a model that it computes otherwise for some kinds of input, and tell which",
    )
    parser.add_argument(
        "--scores", type=Path, metavar="FILE", help="for the model card: what `llava eval report RUN --json FILE` wrote"
    )
    parser.add_argument("--license", metavar="NAME", help="for the model card: the hub's name of one, e.g. apache-2.0")
    parser.add_argument("--push", metavar="REPO", help="upload to this repository of the Hugging Face hub")
    parser.add_argument("--private", action="store_true", help="with --push: a repository that it makes is private")


def run(arguments: Namespace) -> int:
    """Exports and prints what was written; LlavaError for a wrong model, a taken --out, and what cannot be exported."""
    source, out = arguments.model, arguments.out
    check_free(out)
    if model_type_of(source) == TWO_TOWER_TYPE:
        check_folder(source, "MODEL", (TWO_TOWER_TYPE,), weights=True)
    else:
        check_folder(source, "MODEL", files=NEEDED_PROCESSOR_FILES, weights=True)
    if has_adapters(source):
        raise LlavaError(f"MODEL {source} has LoRA adapters; first run llava convert merge-lora {source} --out DIR")
    if arguments.private and arguments.push is None:
        raise LlavaError("--private is about the repository that --push makes")
    name, is_remote = arguments.push or out.resolve().name, arguments.format == "remote_code"
    card = model_card(source, name, is_remote, arguments.scores, arguments.license)
    if arguments.push is not None:
        check_login(arguments.push)
    from llava.convert.formats import export_as

    for note in export_as(arguments.format, source, out, arguments.accept_differences, card):
        print(f"note: {note}")
    files = [path for path in out.iterdir() if path.suffix == ".safetensors"]
    size = sum(path.stat().st_size for path in files)
    number = "1 file" if len(files) == 1 else f"{len(files)} files"
    print(f"{out}: {arguments.format}, {in_bytes(size)} of weights in {number}")
    if arguments.push is not None:
        print(f"uploaded to {push(out, arguments.push, arguments.private)}")
        if (out / TENSORBOARD).is_dir():
            print(f"note: {out / TENSORBOARD} was not uploaded: it tells paths and shows held-out samples")
    return 0
