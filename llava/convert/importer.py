"""`llava convert import SOURCE --out DIR`: a checkpoint of another format as one of this model.

Recognise the source, describe it in our terms, match every key, and only then write: beside --out under another name,
renamed when complete. Weights are read one tensor at a time and written shard by shard.
"""

import re
from argparse import ArgumentTypeError, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from llava.arguments import ArgumentParser, shown
from llava.checkpoint.folder import (
    CONFIG,
    TOWER_FOLDER_TYPES,
    check_folder,
    has_weights,
    model_type_of,
    models_inside,
)
from llava.constants import LANGUAGE_MODEL_TYPES, MODEL_TYPE, ONEVISION_MODEL_TYPE, RELEASED_MODEL_TYPES
from llava.convert.output import check_free
from llava.errors import LlavaError
from llava.sizes import UNITS
from llava.two_tower.parts import MODEL_TYPE as TWO_TOWER_TYPE
from llava.two_tower.tasks import TASKS

if TYPE_CHECKING:
    from llava.convert.source import Source
    from llava.convert.two_tower import TwoTowerSource

NEWLINE_CHOICES = {"auto": None, "true": True, "false": False}
HUB_PATTERNS = ("*.json", "*.txt", "*.jinja")
HUB_ID = re.compile(r"(\w[\w.-]*/[\w.-]+)(?:/(.+?))?/?")
PROJECTOR_FILE = "mm_projector.bin"
PLACES = {  # what may be a folder here or one of the hub
    "source": "SOURCE",
    "vision_tower": "--vision_tower",
    "language_model": "--language_model",
    "tokenizer": "--tokenizer",
    "text_tower": "--text_tower",
}
CKPT = ".ckpt"
BRIDGETOWER_MODEL_TYPE = "bridgetower"


def add_arguments(parser: ArgumentParser) -> None:
    """SOURCE, --out, the folders of the parts that it lacks, and how it is read and written."""
    parser.add_argument(
        "source",
        nargs="?",
        metavar="SOURCE",
        help="folder, mm_projector.bin, .ckpt of a two-tower model, or hub id; leave out to join a tower and a "
        "language model",
    )
    parser.add_argument(
        "--out", required=True, type=Path, metavar="DIR", help="folder to write; must not hold anything yet"
    )
    parser.add_argument(
        "--vision_tower", metavar="DIR", help="SigLIP, CLIP or DINOv2 folder: sizes and weights that the source lacks"
    )
    parser.add_argument(
        "--language_model", metavar="DIR", help="Qwen2 or Qwen3 folder: what a projector or a bare tower is joined to"
    )
    parser.add_argument("--tokenizer", metavar="DIR", help="folder of the tokenizer, if the source has none")
    parser.add_argument(
        "--text_tower", metavar="DIR", help="of a .ckpt whose text tower is not roberta-base: its config and tokenizer"
    )
    parser.add_argument(
        "--task", choices=TASKS, help="of a two-tower model with heads of several tasks: what it is for"
    )
    parser.add_argument(
        "--newline_after_one_crop",
        choices=NEWLINE_CHOICES,
        default="auto",
        help="end a one-crop image with a newline vector; auto: as the source's own code does",
    )
    parser.add_argument(
        "--max_shard_size", type=parse_size, default="5GB", metavar="SIZE", help="of a weight file (default: 5GB)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of parameters that the source lacks (default: 0)"
    )


def parse_size(text: str) -> int:
    """Bytes from "5GB", "200MB" or a number."""
    size = re.fullmatch(r"(\d+)\s*([KMG]B)?", text.strip().upper())
    if size is None or int(size[1]) == 0:
        raise ArgumentTypeError(f"{shown(text)} is no size such as 5GB or 200MB")
    return int(size[1]) * (UNITS[size[2]] if size[2] else 1)


def run(arguments: Namespace) -> int:
    """Converts, printing what became of every key. Raises LlavaError, with nothing left at --out, when it cannot."""
    check_free(arguments.out)
    source = open_source(arguments)
    from llava.convert import two_tower, write

    tokenizer_folder = local_path(arguments.tokenizer, "--tokenizer") if arguments.tokenizer else None
    to = (arguments.out, tokenizer_folder, arguments.max_shard_size, arguments.seed)
    if isinstance(source, two_tower.TwoTowerSource):
        two_tower.write(source, *to)
    else:
        write.convert(source, *to)
    return 0


def open_source(arguments: Namespace) -> "Source | TwoTowerSource":
    """The source, recognised by its files and its config.json, never by its name.

    Raises:
        LlavaError: Something is not there, which is told before torch is imported and anything is fetched; or the
            source cannot be converted.
    """
    absent = [
        f"{option} {name}: no such file or folder"
        for key, option in PLACES.items()
        if (name := getattr(arguments, key)) is not None and not _may_be_had(name)
    ]
    if absent:
        raise LlavaError("; ".join(absent))
    name, newline = arguments.source, NEWLINE_CHOICES[arguments.newline_after_one_crop]
    path = local_path(name, "SOURCE") if name is not None else None
    if path is not None and (path.suffix == CKPT or model_type_of(path) == BRIDGETOWER_MODEL_TYPE):
        return _two_tower_source(arguments, path)
    for option in ("task", "text_tower"):
        if getattr(arguments, option) is not None:
            raise LlavaError(f"--{option} is for two-tower models: a .ckpt file or transformers' BridgeTower")
    tower = _part_folder(arguments, "vision_tower", TOWER_FOLDER_TYPES)
    language_model = _part_folder(arguments, "language_model", LANGUAGE_MODEL_TYPES)
    if path is None:
        _require(arguments, "without a SOURCE")
        from llava.convert.parts import parts_source

        return parts_source(tower, language_model)
    projector = path if path.is_file() else path / PROJECTOR_FILE
    if path.is_file() or (projector.is_file() and not has_weights(path)):
        _require(arguments, f"for the projector {projector}")
        from llava.convert.from_released import projector_source

        return projector_source(name, projector, tower, language_model, newline)
    if not (path / CONFIG).is_file():
        raise LlavaError(
            f"SOURCE {name}: no checkpoint, it has neither config.json nor {PROJECTOR_FILE}{models_inside(path)}"
        )
    model_type = model_type_of(path)
    if model_type not in (ONEVISION_MODEL_TYPE, *RELEASED_MODEL_TYPES):
        raise LlavaError(f"SOURCE {name}: {_why_not(model_type)}")
    if model_type == ONEVISION_MODEL_TYPE:
        from llava.convert.from_llava_onevision import onevision_source

        return onevision_source(name, path, newline)
    from llava.convert.from_released import read_released_config, released_source

    return released_source(name, path, read_released_config(path / CONFIG), tower, newline)


def _two_tower_source(arguments: Namespace, path: Path) -> "TwoTowerSource":
    for option in ("vision_tower", "language_model"):
        if getattr(arguments, option) is not None:
            raise LlavaError(f"--{option} is not for two-tower models: SOURCE {arguments.source} has its towers")
    if NEWLINE_CHOICES[arguments.newline_after_one_crop] is not None:
        raise LlavaError(
            f"--newline_after_one_crop is not for two-tower models: SOURCE {arguments.source} has no newline vector"
        )
    from llava.convert.two_tower import bridgetower_source, ckpt_source

    text_tower = local_path(arguments.text_tower, "--text_tower") if arguments.text_tower is not None else None
    if path.suffix == CKPT:
        return ckpt_source(arguments.source, path, text_tower, arguments.task)
    if text_tower is not None:
        raise LlavaError(
            f"--text_tower is for .ckpt files: SOURCE {arguments.source} has its text tower's configuration"
        )
    return bridgetower_source(arguments.source, path, arguments.task)


def _why_not(model_type: str | None) -> str:
    if model_type in (MODEL_TYPE, TWO_TOWER_TYPE):
        return "is a checkpoint of this model already and needs no conversion"
    if model_type in (*LANGUAGE_MODEL_TYPES, *TOWER_FOLDER_TYPES):
        return f"is a {model_type} model alone; give both parts, --vision_tower DIR --language_model DIR, and no SOURCE"
    importable = (*RELEASED_MODEL_TYPES, ONEVISION_MODEL_TYPE, BRIDGETOWER_MODEL_TYPE)
    return f"unknown model_type {model_type!r}; known: {', '.join(importable)}"


def _part_folder(arguments: Namespace, option: str, model_types: tuple[str, ...]) -> Path | None:
    name = getattr(arguments, option)
    if name is None:
        return None
    folder = local_path(name, f"--{option}")
    check_folder(folder, f"--{option}", model_types)
    return folder


def _require(arguments: Namespace, when: str) -> None:
    if arguments.vision_tower is None or arguments.language_model is None:
        raise LlavaError(f"{when}, both --vision_tower DIR and --language_model DIR are needed")


def local_path(name: str, option: str) -> Path:
    """A local file or folder, or the hub's, fetched.

    Args:
        name: A path, or `owner/name`, or `owner/name/folder` of a repository of several.
        option: What the user calls it, in errors.

    Raises:
        LlavaError: There is neither.
    """
    if Path(name).exists():
        return Path(name)
    if not _may_be_on_hub(name):
        raise LlavaError(f"{option} {name}: no such file or folder")
    from huggingface_hub.errors import HfHubHTTPError

    repository, folder = HUB_ID.fullmatch(name).groups()
    try:
        return _fetched(repository, folder or "")
    except (OSError, ValueError, HfHubHTTPError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise LlavaError(f"{option} {name}: no local folder, and not to be had from the hub ({reason})") from error


def _may_be_had(name: str) -> bool:
    return name != "" and (Path(name).exists() or _may_be_on_hub(name))


def _may_be_on_hub(name: str) -> bool:
    """Whether it is written as the hub's names are: `owner/name`, and no path below a folder that is here."""
    below = len(Path(name).parts) > 2 and Path(name).parents[-2].exists()
    return HUB_ID.fullmatch(name) is not None and not below


def _fetched(repository: str, inside: str) -> Path:
    """The local copy of a folder of a hub repository: what is small, and, if it is a checkpoint, its weights.

    The .bin weights are fetched only where there are no .safetensors, and never those of folders below.
    """
    import huggingface_hub

    prefix = f"{inside}/" if inside else ""
    folder = Path(huggingface_hub.snapshot_download(repository, allow_patterns=list(HUB_PATTERNS))) / inside
    if (folder / CONFIG).is_file():
        below = [f"{prefix}*/*"]
        for kind in ("*.safetensors", "*.bin"):
            huggingface_hub.snapshot_download(repository, allow_patterns=[prefix + kind], ignore_patterns=below)
            if any(folder.glob(kind)):
                break
    return folder
