"""What the environment says of the processes of a run. Imports no torch."""

import os

from llava.errors import LlavaError


def world_size() -> int:
    """Processes of this run: torchrun's count, else what the launch script will start.

    Raises:
        LlavaError: for a variable that is no count.
    """
    return _count("WORLD_SIZE") if "WORLD_SIZE" in os.environ else _count("NPROC_PER_NODE") * _count("NNODES")


def _count(variable: str) -> int:
    text = os.environ.get(variable, "1")
    if not (text.isdecimal() and int(text) > 0):
        raise LlavaError(f"the environment's {variable} must be a whole number of at least 1; found {text!r}")
    return int(text)
