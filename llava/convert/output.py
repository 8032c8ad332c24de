"""The folder that a conversion writes: complete, or not there."""

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import llava
from llava.checkpoint.folder import OTHER_BYTES, STAGE_CHECKPOINTS, STAGE_WORKING
from llava.errors import LlavaError
from llava.files import free_bytes, whole_folder
from llava.sizes import in_bytes

if TYPE_CHECKING:
    import torch

    from llava.checkpoint.match import KeyMatch, Part
    from llava.checkpoint.shards import TensorInfo

RECORD = "conversion.json"  # what was converted, and from what
WORKING = ".converting"  # behind the name of a folder that is being written


@contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """A working folder beside `path`, renamed to `path` when the block ends and removed when it raises.

    Raises:
        LlavaError: `path` exists and is not an empty folder, a stage trains there, or its place cannot be written.
    """
    check_free(path)
    path = Path(path).absolute()
    try:
        with whole_folder(path, path.with_name(f"{path.name}{WORKING}")) as working:
            yield working
    except OSError as error:
        raise LlavaError(f"{path} could not be written: {error}") from error


def check_room(out: Path, source: str, infos: "Iterable[TensorInfo]") -> None:
    """Raises LlavaError unless the disk of `out` has room for such tensors and what stands beside them."""
    needed = sum(math.prod(info.shape) * info.dtype.itemsize for info in infos) + OTHER_BYTES
    free = free_bytes(out.absolute().parent)
    if free < needed:
        raise LlavaError(f"--out {out}: {source} needs {in_bytes(needed)}, {in_bytes(free)} are free")


def dtype_name(dtype: "torch.dtype") -> str:
    """As configurations write it."""
    return str(dtype).removeprefix("torch.")


def write_record(
    folder: Path, source: str, kind: str, parts: "Sequence[Part]", match: "KeyMatch", dtype: "torch.dtype"
) -> None:
    """Writes beside imported weights where they are from and what became of every key."""
    record = {
        "source": source,
        "kind": kind,
        "weights": [str(part.path) for part in parts],
        "keys": match.counts(),
        "dtype": dtype_name(dtype),
        "llava": llava.__version__,
    }
    (folder / RECORD).write_text(json.dumps(record, indent=2) + "\n")


def check_free(path: str | Path) -> None:
    """Raises LlavaError unless `path` does not exist or is an empty folder, and no stage is to end there."""
    path = Path(path)
    for stage in (STAGE_WORKING, STAGE_CHECKPOINTS):
        if path.with_name(f"{path.name}{stage}").exists():
            raise LlavaError(f"{path}{stage} is there: a stage trains, or is to go on, to {path}; choose another --out")
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise LlavaError(f"{path} exists and is not an empty folder; choose another --out")
