"""The folder that a conversion writes: complete, or not there."""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from llava.checkpoint.folder import OTHER_BYTES
from llava.errors import LlavaError
from llava.files import free_bytes, whole_folder
from llava.sizes import in_bytes

if TYPE_CHECKING:
    from llava.checkpoint.shards import TensorInfo

RECORD = "conversion.json"  # what was converted, and from what


@contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """A working folder beside `path`, renamed to `path` when the block ends and removed when it raises.

    Raises:
        LlavaError: `path` exists and is not an empty folder, or its place cannot be written.
    """
    check_free(path)
    try:
        with whole_folder(path) as working:
            yield working
    except OSError as error:
        raise LlavaError(f"{path} could not be written: {error}") from error


def check_room(out: Path, source: str, infos: "Iterable[TensorInfo]") -> None:
    """Raises LlavaError unless the disk of `out` has room for such tensors and what stands beside them."""
    needed = sum(math.prod(info.shape) * info.dtype.itemsize for info in infos) + OTHER_BYTES
    free = free_bytes(out.absolute().parent)
    if free < needed:
        raise LlavaError(f"--out {out}: {source} needs {in_bytes(needed)}, {in_bytes(free)} are free")


def check_free(path: str | Path) -> None:
    """Raises LlavaError unless `path` does not exist or is an empty folder."""
    path = Path(path)
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise LlavaError(f"{path} exists and is not an empty folder; choose another --out")
