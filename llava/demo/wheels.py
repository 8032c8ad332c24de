"""Files inside installed packages, found by path: nothing of a package is imported or run."""

from importlib.util import find_spec
from pathlib import Path

from llava.errors import LlavaError

INSTALL = "make demo-real installs it"


def packaged_file(package: str, path: str) -> Path:
    """The file `path` of an installed top-level package; raises LlavaError, which says what installs it."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise LlavaError(f"the package {package}, which holds {path}, is not installed; {INSTALL}")
    file = Path(spec.submodule_search_locations[0], path)
    if not file.is_file():
        raise LlavaError(f"{file}: no such file; the package {package} is there without it")
    return file
