"""The folder that a conversion writes: complete, or not there."""

import math
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from llava.errors import LlavaError
from llava.files import follow_umask
from llava.sizes import in_bytes
from llava.train.folders.stage_folder import OTHER_BYTES

if TYPE_CHECKING:
    from llava.convert.shards import TensorInfo

RECORD = "conversion.json"  # what was converted, and from what


@contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """A working folder beside `path`, renamed to `path` when the block ends and removed when it raises.

    Raises LlavaError when `path` exists and is not an empty folder, and when its place cannot be written.
    """
    path = Path(path)
    check_free(path)
    working = path.absolute().with_name(f"{path.absolute().name}.unfinished")
    try:
        shutil.rmtree(working, ignore_errors=True)
        working.mkdir(parents=True)
        yield working
        follow_umask(working)
        if path.exists():
            path.rmdir()
        working.rename(path)
    except OSError as error:
        raise LlavaError(f"{path} could not be written: {error}") from error
    finally:
        shutil.rmtree(working, ignore_errors=True)


def check_room(out: Path, source: str, infos: "Iterable[TensorInfo]") -> None:
    """Raises LlavaError unless the disk of `out` has room for such tensors and what stands beside them."""
    needed = sum(math.prod(info.shape) * info.dtype.itemsize for info in infos) + OTHER_BYTES
    free = shutil.disk_usage(next(parent for parent in out.absolute().parents if parent.exists())).free
    if free < needed:
        raise LlavaError(f"--out {out}: {source} needs {in_bytes(needed)}, {in_bytes(free)} are free")


def check_free(path: str | Path) -> None:
    """Raises LlavaError unless `path` does not exist or is an empty folder."""
    path = Path(path)
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise LlavaError(f"{path} exists and is not an empty folder; choose another --out")
