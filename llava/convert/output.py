"""The folder that a conversion writes: complete, or not there."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llava.errors import LlavaError


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


def check_free(path: str | Path) -> None:
    """Raises LlavaError unless `path` does not exist or is an empty folder."""
    path = Path(path)
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise LlavaError(f"{path} exists and is not an empty folder; choose another --out")
