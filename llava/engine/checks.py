"""What can be wrong before a model is loaded, found without importing torch."""

from llava.errors import LlavaError

DTYPE_NAMES = ("float32", "bfloat16", "float16")


def check_dtype(name: str) -> None:
    """Raises LlavaError for a name that is neither `auto` nor a dtype that a model is loaded in."""
    if name not in ("auto", *DTYPE_NAMES):
        raise LlavaError(f"unknown dtype {name!r}; choose auto, {', '.join(DTYPE_NAMES)}")
