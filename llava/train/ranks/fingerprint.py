"""What must be the same on every rank, and what a run is known by afterwards: hashes of code, data and weights."""

import hashlib
import platform
import subprocess
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

import llava
from llava.checkpoint.folder import identity_files
from llava.data.indexing import data_file_hash
from llava.files import ends_hash, file_hash
from llava.train.family import StageRecipe, rules_of
from llava.train.recipe.dotted import flatten

PACKAGES = ("torch", "transformers", "accelerate", "deepspeed", "peft", "bitsandbytes", "llava-ov-manager")
CODE = Path(llava.__file__).parent
CODE_SUFFIXES = (".py", ".yaml")
THREADS = 4  # hashlib lets go of the interpreter's lock


def file_hashes(paths: Iterable[Path], hash_of: Callable[[Path], str] = file_hash) -> dict[str, str]:
    """{path: SHA-256} of the files, in their order."""
    paths = list(paths)
    with ThreadPoolExecutor(THREADS) as pool:
        return dict(zip(map(str, paths), pool.map(hash_of, paths)))


def combined_hash(hashes: dict[str, str]) -> str:
    """One SHA-256 of names and hashes together."""
    return hashlib.sha256("\n".join(f"{name} {value}" for name, value in sorted(hashes.items())).encode()).hexdigest()


def code_hashes() -> dict[str, str]:
    """{path below the package: SHA-256} of every source file of this code."""
    files = sorted(path for path in CODE.rglob("*") if path.suffix in CODE_SUFFIXES)
    return {str(Path(name).relative_to(CODE.parent)): value for name, value in file_hashes(files).items()}


def data_hashes(recipe: StageRecipe) -> dict[str, str]:
    """{path: SHA-256} of the data files that decide what is learned; of large ones of their sizes and ends."""
    rules = rules_of(recipe)
    ends = {str(path): ends_hash(path) for path in rules.large_files(recipe)}
    return file_hashes(dict.fromkeys(rules.data_files(recipe)), data_file_hash) | ends


def start_hashes(recipe: StageRecipe) -> dict[str, str]:
    """{path: SHA-256} of all by which the models that the stage starts from are known, see identity_files."""
    return file_hashes(file for folder in rules_of(recipe).start_folders(recipe) for file in identity_files(folder))


def recipe_values(recipe: StageRecipe) -> dict[str, str]:
    """{dotted key: value as text} of the resolved recipe, and the hash of its DeepSpeed file."""
    values = {key: "none" if value is None else str(value) for key, value in flatten(recipe.to_dict()).items()}
    if recipe.run.deepspeed is not None:
        values |= file_hashes([Path(recipe.run.deepspeed)])
    return values


def versions() -> dict[str, str | None]:
    """Of Python, of the packages that compute, and of CUDA and NCCL where there is a GPU; None for what is absent."""
    numbers = {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}}
    if torch.cuda.is_available():
        numbers |= {"cuda": torch.version.cuda, "nccl": ".".join(map(str, torch.cuda.nccl.version()))}
    return numbers


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def git_state() -> str | None:
    """The commit of this code, with "-dirty" when it was changed; None outside a repository."""
    command = ["git", "-C", str(CODE), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
