"""`llava convert import SOURCE --out DIR`: a checkpoint of another format as one of this model.

Recognise the source, describe it in our terms, match every key, and only then write: beside --out under another name,
renamed when complete. Weights are read one tensor at a time and written shard by shard.
"""

import argparse
import re
from pathlib import Path

from llava.errors import LlavaError

UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}
NEWLINE_CHOICES = {"auto": None, "true": True, "false": False}
HUB_PATTERNS = ("*.json", "*.txt", "*.jinja")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source", nargs="?", help="folder, mm_projector.bin or hub id; leave out to join a tower and a language model"
    )
    parser.add_argument("--out", required=True, help="folder to write; must not hold anything yet")
    parser.add_argument("--vision_tower", help="SigLIP folder: sizes and weights that the source lacks")
    parser.add_argument("--language_model", help="Qwen2 folder: what a projector or a bare tower is joined to")
    parser.add_argument("--tokenizer", help="folder of the tokenizer, if the source has none")
    parser.add_argument(
        "--newline_after_one_crop",
        choices=NEWLINE_CHOICES,
        default="auto",
        help="end a one-crop image with a newline vector; auto: as the source's own code does",
    )
    parser.add_argument("--max_shard_size", type=parse_size, default="5GB", help="of a weight file (default: 5GB)")
    parser.add_argument("--seed", type=int, default=0, help="of parameters that the source lacks (default: 0)")


def parse_size(text: str) -> int:
    """Bytes from "5GB", "200MB" or a number."""
    found = re.fullmatch(r"(\d+)\s*([KMG]B)?", text.strip().upper())
    if found is None or int(found[1]) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no size such as 5GB or 200MB")
    return int(found[1]) * UNITS[found[2] or ""]


def run(arguments: argparse.Namespace) -> int:
    """Converts, printing what became of every key. Raises LlavaError, with nothing left at --out, when it cannot."""
    out = Path(arguments.out)
    from llava.convert.checkpoint import convert
    from llava.convert.output import check_free

    check_free(out)

    source = open_source(arguments)
    tokenizer_folder = local_path(arguments.tokenizer, "--tokenizer") if arguments.tokenizer else None
    convert(source, out, tokenizer_folder, arguments.max_shard_size, arguments.seed)
    return 0


def open_source(arguments: argparse.Namespace):
    """The source, recognised by its files and its config.json, never by its name."""
    from llava.convert.hf import MODEL_TYPE, onevision_source
    from llava.convert.parts import parts_source
    from llava.convert.reference import (
        MODEL_TYPES,
        PROJECTOR_FILE,
        projector_source,
        read_reference_config,
        reference_source,
    )
    from llava.convert.shards import has_weights
    from llava.train.checkpoint import LANGUAGE_MODEL_TYPES, TOWER_TYPES, read_json

    name, newline = arguments.source, NEWLINE_CHOICES[arguments.newline_after_one_crop]
    tower = _part_folder(arguments, "vision_tower", TOWER_TYPES)
    language_model = _part_folder(arguments, "language_model", LANGUAGE_MODEL_TYPES)
    if name is None:
        _require(tower, language_model, "without a SOURCE")
        return parts_source(tower, language_model)
    path = local_path(name, "SOURCE")
    projector = path if path.is_file() else path / PROJECTOR_FILE
    if path.is_file() or (projector.is_file() and not has_weights(path)):
        _require(tower, language_model, f"for the projector {projector}")
        return projector_source(name, projector, tower, language_model, newline)
    if not (path / "config.json").is_file():
        inside = sorted(found.parent.name for found in path.glob("*/config.json"))
        hint = f"; name one of the folders in it: {', '.join(inside)}" if inside else ""
        raise LlavaError(f"SOURCE {name}: no checkpoint, it has neither config.json nor {PROJECTOR_FILE}{hint}")
    model_type = read_json(path / "config.json").get("model_type")
    if model_type == MODEL_TYPE:
        return onevision_source(name, path, newline)
    if model_type in MODEL_TYPES:
        return reference_source(name, path, read_reference_config(path / "config.json"), tower, newline)
    raise LlavaError(f"SOURCE {name}: {_why_not(model_type, (*MODEL_TYPES, MODEL_TYPE))}")


def _why_not(model_type: str | None, known: tuple[str, ...]) -> str:
    from llava.train.checkpoint import LANGUAGE_MODEL_TYPES, MODEL_TYPE, TOWER_TYPES

    if model_type == MODEL_TYPE:
        return "is a checkpoint of this model already and needs no conversion"
    if model_type in (*LANGUAGE_MODEL_TYPES, *TOWER_TYPES):
        return f"is a {model_type} model alone; give both parts, --vision_tower DIR --language_model DIR, and no SOURCE"
    return f"unknown model_type {model_type!r}; known: {', '.join(known)}"


def _part_folder(arguments: argparse.Namespace, option: str, model_types: tuple[str, ...]) -> Path | None:
    from llava.train.checkpoint import read_json

    name = getattr(arguments, option)
    if name is None:
        return None
    folder = local_path(name, f"--{option}")
    found = read_json(folder / "config.json").get("model_type")
    if found not in model_types:
        raise LlavaError(f"--{option} {name}: holds a model of type {found!r}; expected {' or '.join(model_types)}")
    return folder


def _require(tower: Path | None, language_model: Path | None, when: str) -> None:
    if tower is None or language_model is None:
        raise LlavaError(f"{when}, both --vision_tower DIR and --language_model DIR are needed")


def local_path(name: str, option: str) -> Path:
    """A local file or folder, or the hub's, fetched: `owner/name`, or `owner/name/folder` of a repository of several.

    Raises LlavaError when there is neither.
    """
    if Path(name).exists():
        return Path(name)
    found = re.fullmatch(r"([\w.-]+/[\w.-]+)(?:/(.+?))?/?", name)
    if found is None:
        raise LlavaError(f"{option} {name}: no such file or folder")
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return _fetched(found[1], found[2] or "")
    except (OSError, ValueError, HfHubHTTPError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise LlavaError(f"{option} {name}: no local folder, and not to be had from the hub ({reason})") from error


def _fetched(repository: str, inside: str) -> Path:
    """The local copy of a folder of a hub repository: what is small, and, if it is a checkpoint, its weights.

    The .bin weights are fetched only where there are no .safetensors, and never those of folders below.
    """
    import huggingface_hub

    prefix = f"{inside}/" if inside else ""
    folder = Path(huggingface_hub.snapshot_download(repository, allow_patterns=list(HUB_PATTERNS))) / inside
    if (folder / "config.json").is_file():
        below = [f"{prefix}*/*"]
        for kind in ("*.safetensors", "*.bin"):
            huggingface_hub.snapshot_download(repository, allow_patterns=[prefix + kind], ignore_patterns=below)
            if any(folder.glob(kind)):
                break
    return folder
