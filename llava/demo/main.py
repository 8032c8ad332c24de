"""`llava demo`: writes the digit pages as a training mixture and a test set, and pretrains the tiny towers."""

import sys
from argparse import Namespace
from pathlib import Path

from llava.arguments import ArgumentParser
from llava.errors import LlavaError


def main(argv: list[str]) -> int:
    """`make` writes the data, `pretrain` the two models; each into a folder that must not exist yet."""
    parser = ArgumentParser(prog="llava demo", description="The digit pages, and the tiny models that read them.")
    commands = parser.add_commands()
    make = commands.add_parser("make", help="write pages, questions, mixtures and the test set")
    make.add_argument("folder", type=Path)
    make.add_argument("--captions", type=int, default=3000, help="notes of stage 1 (default 3000)")
    make.add_argument("--pages", type=int, default=12000, help="pages of stages 1.5 and 2 together (default 12000)")
    make.add_argument("--test_pages", type=int, default=300, help="held-out pages (default 300)")
    pretrain = commands.add_parser("pretrain", help="train the tiny SigLIP and Qwen2")
    pretrain.add_argument("folder", type=Path)
    pretrain.add_argument("--tower_steps", type=int, default=600)
    pretrain.add_argument("--language_model_steps", type=int, default=600)
    for command in (make, pretrain):
        command.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    _check(arguments)

    if arguments.command == "make":
        from llava.demo.digit_pages import DIGIT_PAGES
        from llava.demo.mixture import write_mixture

        write_mixture(
            arguments.folder, DIGIT_PAGES, arguments.captions, arguments.pages, arguments.test_pages, arguments.seed
        )
        return 0
    from llava.demo.pretrain import pretrain_language_model, pretrain_tower

    seed = arguments.seed
    tower = pretrain_tower(arguments.folder / "siglip", arguments.tower_steps, seed=seed)
    print(f"vision tower: {tower:.1%} of held-out digits labelled right", file=sys.stderr)
    language_model = pretrain_language_model(arguments.folder / "qwen2", arguments.language_model_steps, seed=seed)
    print(f"language model: {language_model:.1%} of answer tokens right on text pages", file=sys.stderr)
    return 0


def _check(arguments: Namespace) -> None:
    folder = arguments.folder
    if folder.exists() and not folder.is_dir():
        raise LlavaError(f"{folder}: a file, and no folder; name a new folder")
    if folder.exists() and any(folder.iterdir()):
        raise LlavaError(f"{folder} is not empty; name a new folder")
    for name, value in vars(arguments).items():
        if isinstance(value, int) and name != "seed" and value < 1:
            raise LlavaError(f"--{name} must be at least 1, found {value}")
