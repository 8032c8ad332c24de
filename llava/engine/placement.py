"""Where a model is put: on one device, or in pieces on several."""

import os
from collections.abc import Mapping
from pathlib import Path

import torch

from llava.checkpoint.folder import has_adapters
from llava.engine.checks import SPREAD
from llava.errors import LlavaError

DeviceMap = Mapping[str, str | int]


def choose_device(name: str | DeviceMap) -> torch.device:
    """The device of a name: "auto", or of pieces, is the GPU if there is one. Raises LlavaError for one that fails."""
    if not isinstance(name, str) or name in ("auto", SPREAD):
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch was built without this device
        raise LlavaError(f"device {name!r} cannot be used: {str(error).splitlines()[0]}") from error
    return device


def on_cpu(device: str | None) -> bool:
    """Whether this rank computes on the CPU. LlavaError where ranks would have to share a GPU, or there is none."""
    ranks, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", 1)), torch.cuda.device_count()
    if device == SPREAD and ranks > 1:
        raise LlavaError(f"device {SPREAD} puts one model on all GPUs: one process, found {ranks}")
    if device == "cpu" or (device in (None, "auto", SPREAD) and not torch.cuda.is_available()):
        return True
    if ranks > max(1, gpus):
        raise LlavaError(f"{ranks} processes need a GPU each and there are {gpus}; ask for fewer, or for device cpu")
    return False


def best_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 on a GPU, float16 on one that only emulates it, float32 elsewhere."""
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def spread_options(folder: Path, places: str | DeviceMap, offloaded: str) -> dict:
    """Options of from_pretrained for a model in pieces, which accelerate's hooks join.

    Args:
        folder: of the checkpoint.
        places: SPREAD fills the GPUs, then the CPU, then the disk; or {beginning of a module's name: its device}.
        offloaded: a folder for what is read from the disk each time it is used.

    Raises:
        LlavaError: the checkpoint has adapters.
    """
    if has_adapters(folder):
        raise LlavaError(
            f"{folder} has LoRA adapters, which cannot be merged into a model in pieces; merge them first: "
            f"llava convert merge-lora {folder} --out DIR"
        )
    return {"device_map": "auto" if places == SPREAD else dict(places), "offload_folder": offloaded}
