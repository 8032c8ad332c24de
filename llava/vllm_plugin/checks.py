"""Which models vLLM cannot run, told before it tries."""

from llava.errors import LlavaError
from llava.fusion.config import FusionConfig


def check_static(fusion: FusionConfig) -> None:
    """Raises LlavaError for a fusion that reads hidden states: vLLM's prefill hands a layer tokens of many requests."""
    if not fusion.static:
        raise LlavaError(
            f"vLLM cannot run this fusion ({fusion.describe()}), which reads the hidden states of the language model; "
            "run it in transformers: `llava serve --engine transformers`, `llava eval --engine transformers`"
        )
