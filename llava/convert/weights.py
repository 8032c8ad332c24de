"""Weight files read one tensor at a time: safetensors and torch's .bin, whole or in shards.

Only names, shapes and dtypes are held; data is mapped from the file when a tensor is read. A .bin file is unpickled
with weights_only, so that it cannot run code.
"""

import json
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from llava.errors import LlavaError

# (index of shards, whole file), the first that is there is read.
LAYOUTS = (
    ("model.safetensors.index.json", "model.safetensors"),
    ("pytorch_model.bin.index.json", "pytorch_model.bin"),
)
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies and what it is, without its data."""

    file: Path
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize


class WeightFiles:
    """The tensors of some files by name. infos: {name: TensorInfo}, file by file.

    Raises LlavaError for a file that is missing, cut off or holds anything but tensors, and for a name found twice.
    """

    def __init__(self, files: Sequence[Path]):
        self.infos: dict[str, TensorInfo] = {}
        self._mapped: tuple[Path, dict] | None = None
        for file in files:
            infos = self._bin_infos(file) if file.suffix == ".bin" else _safetensors_infos(file)
            twice = sorted(self.infos.keys() & infos.keys())
            if twice:
                raise LlavaError(f"{file}: {twice[0]} is also in {self.infos[twice[0]].file.name}")
            self.infos |= infos
        self.release()

    @classmethod
    def of_folder(cls, folder: Path) -> "WeightFiles":
        """The weights of a model folder; LlavaError when it has none or a shard lacks what the index promises."""
        for index, whole in LAYOUTS:
            if (folder / index).is_file():
                weight_map = read_json(folder / index).get("weight_map")
                if not isinstance(weight_map, dict):
                    raise LlavaError(f"{folder / index}: has no weight_map")
                weights = cls([folder / name for name in sorted(set(weight_map.values()))])
                absent = sorted(weight_map.keys() - weights.infos.keys())
                if absent:
                    raise LlavaError(f"{folder / index}: {absent[0]} is not in {weight_map[absent[0]]}")
                return weights
            if (folder / whole).is_file():
                return cls([folder / whole])
        raise LlavaError(
            f"{folder}: no weights; expected one of {', '.join(name for pair in LAYOUTS for name in pair)}"
        )

    def read(self, name: str) -> torch.Tensor:
        """The tensor, mapped from its file: its pages are read when they are used and can be dropped by the system."""
        file = self.infos[name].file
        if file.suffix == ".bin":
            return self._bin(file)[name].detach()
        with safe_open(file, framework="pt") as opened:
            return opened.get_tensor(name)

    def release(self) -> None:
        """Lets go of the .bin file that was read last, and with it of the memory that its pages take."""
        self._mapped = None

    def _bin(self, file: Path) -> dict:
        if self._mapped is None or self._mapped[0] != file:
            self._mapped = (file, _mapped_bin(file))
        return self._mapped[1]

    def _bin_infos(self, file: Path) -> dict[str, TensorInfo]:
        tensors = self._bin(file)
        return {name: TensorInfo(file, tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}


def has_weights(folder: Path) -> bool:
    """Whether the folder holds a whole model's weights in one of the known layouts."""
    return any((folder / name).is_file() for pair in LAYOUTS for name in pair)


def read_json(path: Path) -> dict:
    """A JSON object from a file; LlavaError when it is missing, broken or something else."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise LlavaError(f"{path}: not readable as JSON ({error})") from error
    if not isinstance(content, dict):
        raise LlavaError(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content


def _safetensors_infos(file: Path) -> dict[str, TensorInfo]:
    infos = {}
    try:
        with safe_open(file, framework="pt") as opened:  # compares the header with the file's size
            for name in opened.keys():  # noqa: SIM118, it is no dictionary
                piece = opened.get_slice(name)
                dtype = DTYPES.get(piece.get_dtype())
                if dtype is None and not name.endswith("position_ids"):
                    raise LlavaError(f"{file}: {name} is {piece.get_dtype()}; quantised weights cannot be converted")
                infos[name] = TensorInfo(file, tuple(piece.get_shape()), dtype or torch.int64)
    except (OSError, SafetensorError) as error:
        raise LlavaError(f"{file}: missing or cut off ({error})") from error
    return infos


def _mapped_bin(file: Path) -> dict[str, torch.Tensor]:
    try:
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise LlavaError(f"{file}: holds more than tensors; it could run code and is not read") from error
    except (RuntimeError, OSError, ValueError, EOFError) as error:
        raise LlavaError(f"{file}: missing, cut off or no torch file ({str(error).splitlines()[0]})") from error
    if not isinstance(content, dict) or not content:
        raise LlavaError(f"{file}: expected named tensors, found {type(content).__name__}")
    for name, tensor in content.items():
        if not isinstance(tensor, torch.Tensor):
            raise LlavaError(f"{file}: {name} is {type(tensor).__name__}, not a tensor")
        if not tensor.is_floating_point() and not name.endswith("position_ids"):
            raise LlavaError(f"{file}: {name} is {tensor.dtype}; quantised weights cannot be converted")
    return content
