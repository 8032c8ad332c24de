"""The files that hold a checkpoint's weights. Imports no torch, so that what is missing is told at once."""

import json
from pathlib import Path

from llava.errors import LlavaError

INDEX = "model.safetensors.index.json"
# What a folder may hold, in the order in which transformers looks: (single file, index of several).
LAYOUTS = (("model.safetensors", INDEX), ("pytorch_model.bin", "pytorch_model.bin.index.json"))


def weight_files(path: str | Path) -> list[Path]:
    """The files that hold a checkpoint's weights: of a folder, or the one .safetensors or .bin file `path` itself.

    Raises LlavaError when there is none, when an index cannot be read, and when it names a file that does not exist.
    """
    path = Path(path)
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise LlavaError(f"{path}: no such file or folder")
    for single, index in LAYOUTS:
        if (path / single).is_file():
            return [path / single]
        if (path / index).is_file():
            return _indexed_files(path / index)
    names = ", ".join(name for layout in LAYOUTS for name in layout)
    raise LlavaError(f"{path}: no weights, found none of {names}")


def has_weights(folder: Path) -> bool:
    """Whether the folder holds a model's weights in one of the known layouts."""
    return any((folder / name).is_file() for layout in LAYOUTS for name in layout)


def indexed_names(index: Path) -> list[str]:
    """Names of the files that an index of weights names. Raises LlavaError for one that cannot be read."""
    try:
        names = set(json.loads(index.read_text(encoding="utf-8-sig"))["weight_map"].values())
        return sorted(str.__str__(name) for name in names)
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise LlavaError(f"{index}: not readable as an index of weights ({error!r})") from None


def _indexed_files(index: Path) -> list[Path]:
    names = indexed_names(index)
    outside = [name for name in names if Path(name).name != name]
    if outside:
        raise LlavaError(f"{index}: names {outside[0]!r}, which is not a file of the same folder")
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise LlavaError(f"{index}: {len(missing)} of {len(names)} files do not exist, first {missing[0]}")
    return [index.parent / name for name in names]
