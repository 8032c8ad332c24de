"""The folder that a conversion writes: complete, or not there."""

import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from llava.convert.shards import TensorInfo
from llava.errors import LlavaError
from llava.train.checkpoint import OTHER_BYTES


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
        if path.exists():
            path.rmdir()
        working.rename(path)
    except OSError as error:
        raise LlavaError(f"{path} could not be written: {error}") from error
    finally:
        shutil.rmtree(working, ignore_errors=True)


def check_room(out: Path, source: str, infos: Iterable[TensorInfo]) -> None:
    """Raises LlavaError unless the disk of `out` has room for such tensors and what stands beside them."""
    needed = sum(torch.Size(info.shape).numel() * info.dtype.itemsize for info in infos) + OTHER_BYTES
    free = shutil.disk_usage(next(parent for parent in out.absolute().parents if parent.exists())).free
    if free < needed:
        raise LlavaError(f"--out {out}: {source} needs {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free")


def check_free(path: str | Path) -> None:
    """Raises LlavaError unless `path` does not exist or is an empty folder."""
    path = Path(path)
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise LlavaError(f"{path} exists and is not an empty folder; choose another --out")
