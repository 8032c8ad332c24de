"""What can be wrong before a model is loaded, found without importing torch."""

from importlib.util import find_spec

from llava.constants import FLASH_ATTENTION, INSTALL_FLASH
from llava.errors import LlavaError

DTYPE_NAMES = ("float32", "bfloat16", "float16")
SPREAD = "spread"  # the device that is all of them


def check_dtype(name: str) -> None:
    """Raises LlavaError for a name that is neither `auto` nor a dtype that a model is loaded in."""
    if name not in ("auto", *DTYPE_NAMES):
        raise LlavaError(f"unknown dtype {name!r}; choose auto, {', '.join(DTYPE_NAMES)}")


def check_attention(name: str | None) -> None:
    """Raises LlavaError for flash attention where its package is missing."""
    if name == FLASH_ATTENTION and find_spec("flash_attn") is None:
        raise LlavaError(f"{name} needs the package flash_attn: {INSTALL_FLASH}, after torch; sdpa needs nothing")
