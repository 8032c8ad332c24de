"""Files that PyTorch Lightning saved: read without Lightning, and without running what is in them."""

import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch

from llava.errors import LlavaError

SUFFIX = ".ckpt"
_LIBRARIES = ("pytorch_lightning.", "lightning.", "lightning_fabric.")


def read_lightning(file: Path) -> dict[str, Any]:
    """What the file holds: `state_dict`, mostly `hyper_parameters`, and the rest of a training.

    Only tensors and plain values are made of it (torch's weights_only); what is of Lightning's own classes, which
    nobody here reads, becomes dictionaries.
    Raises LlavaError for another file, and for one that holds other classes.
    """
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(file)
        stand_ins: list[Any] = [(OrderedDict, name) for name in names if name.startswith(_LIBRARIES)]
        with torch.serialization.safe_globals(stand_ins):
            content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError:
        raise LlavaError(f"{file}: not readable as weights: it holds more than tensors and might run code") from None
    except (OSError, RuntimeError, EOFError, ValueError) as error:
        raise LlavaError(f"{file}: not readable as weights ({str(error).splitlines()[0]})") from None
    if not isinstance(content, dict) or not isinstance(content.get("state_dict"), dict):
        raise LlavaError(f"{file}: no checkpoint of Lightning, it has no state_dict")
    return content
