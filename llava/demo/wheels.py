"""Files inside installed packages, found by path: nothing of a package is imported or run."""

from importlib.util import find_spec
from pathlib import Path

from llava.errors import LlavaError

INSTALL_REAL = "make demo-real"


def readable_file(package: str, path: str, reader: str) -> Path:
    """As packaged_file, of a file that another package reads: that must be installed, too."""
    file = packaged_file(package, path)
    if find_spec(reader) is None:
        raise LlavaError(f"the package {reader}, which reads {file}, is not installed; {INSTALL_REAL} installs it")
    return file


def packaged_file(package: str, path: str, install: str = INSTALL_REAL) -> Path:
    """The file `path` of an installed top-level package; raises LlavaError, which names the command to install it."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise LlavaError(f"the package {package}, which holds {path}, is not installed; {install} installs it")
    file = Path(spec.submodule_search_locations[0], path)
    if not file.is_file():
        raise LlavaError(f"{file}: no such file; the package {package} is there without it")
    return file
