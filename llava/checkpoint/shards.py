"""Weights as a stream: tensor by tensor out of a checkpoint, shard by shard into a folder of safetensors.

Nothing here holds more than one shard in memory, so that a 72B model needs room for its files on disk and little else.
Names, shapes and dtypes pass through as they are; renaming is the caller's part.
"""

import json
import pickle
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from llava.checkpoint.folder import INDEX, LAYOUTS, WEIGHTS, read_index, weight_files
from llava.checkpoint.lightning import SUFFIX, read_lightning
from llava.errors import LlavaError

MAX_SHARD_BYTES = 5 * 10**9
MAPPED_BYTES = 2**28  # a file is mapped anew after so much of it, so that what was read does not stay in memory


def read_tensors(path: str | Path) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, tensor) of every weight of a folder or file, on the CPU, one at a time, backed by the file itself.

    Raises:
        LlavaError: Also in the middle: a file is cut off or holds anything but tensors, two files hold one name, or an
            index names a tensor that its files do not hold.
    """
    files = weight_files(path)
    seen: dict[str, str] = {}
    for file in files:
        for name, tensor in _read_file(file):
            if name in seen:
                raise LlavaError(f"{file}: holds {name}, which {seen[name]} holds too")
            seen[name] = file.name
            yield name, tensor
    promised = _indexed_names(Path(path)) if len(files) > 1 else set()
    if absent := sorted(promised - set(seen)):
        raise LlavaError(f"{path}: the index names {len(absent)} tensors that no file holds, first {absent[0]}")


@dataclass(frozen=True)
class TensorInfo:
    """A tensor without its data."""

    shape: tuple[int, ...]
    dtype: torch.dtype


def tensor_infos(path: str | Path) -> dict[str, TensorInfo]:
    """Names, shapes and dtypes of a checkpoint's weights; no data is read. Raises as read_tensors does."""
    return {name: TensorInfo(tuple(tensor.shape), tensor.dtype) for name, tensor in read_tensors(path)}


def tensor_shapes(path: str | Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a checkpoint's weights; no data is read. Raises as read_tensors does."""
    return {name: info.shape for name, info in tensor_infos(path).items()}


def _read_file(file: Path) -> Iterator[tuple[str, torch.Tensor]]:
    names, get = _mapped(file)
    taken = 0
    for name in names:
        if taken > MAPPED_BYTES:
            del get  # drops the old mapping before the new one is made
            taken = 0
            _, get = _mapped(file)
        tensor = get(name)
        taken += tensor.nbytes
        yield name, tensor


def _mapped(file: Path) -> tuple[list[str], Callable[[str], torch.Tensor]]:
    """(names, how to get a tensor): the file's pages are read when a tensor's data is used."""
    if file.suffix == ".safetensors":
        try:
            opened = safe_open(file, framework="pt")
        except (OSError, SafetensorError) as error:
            raise LlavaError(f"{file}: not readable as weights ({error})") from None
        return list(opened.keys()), opened.get_tensor
    content = read_lightning(file)["state_dict"] if file.suffix == SUFFIX else _unpickled(file)
    if not isinstance(content, dict) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise LlavaError(f"{file}: holds more than named tensors")
    return list(content), content.__getitem__


def _unpickled(file: Path) -> Any:
    try:
        # Files from before torch 1.6 are no zip archives and cannot be mapped.
        return torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except pickle.UnpicklingError:
        raise LlavaError(f"{file}: not readable as weights: it holds more than tensors and might run code") from None
    except (OSError, RuntimeError, EOFError) as error:
        raise LlavaError(f"{file}: not readable as weights ({str(error).splitlines()[0]})") from None


def _indexed_names(folder: Path) -> set[str]:
    index = next(folder / index for single, index in LAYOUTS if (folder / index).is_file())
    return set(read_index(index))


def write_shards(
    folder: str | Path, tensors: Iterable[tuple[str, torch.Tensor]], max_shard_bytes: int = MAX_SHARD_BYTES
) -> dict:
    """Writes (name, tensor) pairs as they come: model.safetensors, or numbered shards with their index.

    A shard is written when the next tensor would take it over max_shard_bytes; a larger tensor has a shard of its own.
    Tensors that share memory, as tied ones do, are written each in full.

    Returns:
        The index as transformers has it: {"metadata": {"total_parameters", "total_size"}, "weight_map": {name: file}}.

    Raises:
        LlavaError: A name comes twice, or nothing comes.
    """
    folder = Path(folder)
    shards: list[list[str]] = []  # the names in each
    seen: set[str] = set()
    pending: dict[str, torch.Tensor] = {}
    pending_bytes = 0
    parameters = size = 0

    def flush() -> None:
        save_file(_apart(pending), folder / _part(len(shards)), metadata={"format": "pt"})
        shards.append(list(pending))
        pending.clear()

    for name, tensor in tensors:
        if name in seen:
            raise LlavaError(f"{folder}: the tensor {name} comes twice")
        seen.add(name)
        if pending and pending_bytes + tensor.nbytes > max_shard_bytes:
            flush()
            pending_bytes = 0
        pending[name] = tensor.detach().cpu().contiguous()
        pending_bytes += tensor.nbytes
        parameters, size = parameters + tensor.numel(), size + tensor.nbytes
    if not pending:
        raise LlavaError(f"{folder}: no tensors to write")
    flush()
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards):
        shard = f"model-{number + 1:05}-of-{len(shards):05}.safetensors" if len(shards) > 1 else WEIGHTS
        (folder / _part(number)).rename(folder / shard)
        weight_map |= dict.fromkeys(names, shard)
    index = {
        "metadata": {"total_parameters": parameters, "total_size": size},
        "weight_map": dict(sorted(weight_map.items())),
    }
    if len(shards) > 1:
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")
    return index


def _part(number: int) -> str:
    return f"part-{number:05}.unfinished"  # how many there will be is known at the end only


def _apart(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same with a copy of every tensor whose storage an earlier one has: safetensors stores no aliases."""
    apart, storages = {}, set()
    for name, tensor in tensors.items():
        storage = tensor.untyped_storage().data_ptr()
        apart[name] = tensor.clone() if storage in storages else tensor
        storages.add(storage)
    return apart
