"""Which models vLLM cannot run, told before it tries."""

from collections.abc import Mapping
from typing import Any

from llava.errors import LlavaError
from llava.fusion.config import FusionConfig

VOCABULARY_STEP = 64  # vLLM fills a vocabulary up to a multiple of it


def check_static(fusion: FusionConfig) -> None:
    """Raises LlavaError for a fusion that reads hidden states: vLLM's prefill hands a layer tokens of many requests."""
    if not fusion.static:
        raise LlavaError(
            f"vLLM cannot run this fusion ({fusion.describe()}), which reads the hidden states of the language model; "
            "run it in transformers: `llava serve --engine transformers`, `llava eval --engine transformers`"
        )


def check_ranks(text: Mapping[str, Any], ranks: int) -> None:
    """Raises LlavaError for a language model that vLLM cannot cut into parts for as many ranks (tensor parallel).

    text: its configuration; of what is not named there nothing is said.
    """
    for name, what in (
        ("num_attention_heads", "heads of attention"),
        ("num_key_value_heads", "heads of keys and values"),
        ("intermediate_size", "features inside a layer"),
        ("vocab_size", f"tokens, in steps of {VOCABULARY_STEP},"),
    ):
        number = text.get(name)
        if number is None or (name == "num_key_value_heads" and ranks % number == 0):  # which are then copied
            continue
        if name == "vocab_size":
            number += -number % VOCABULARY_STEP
        if number % ranks:
            raise LlavaError(
                f"vLLM cannot share this model among {ranks} ranks (tensor parallel): its {number} {what} cannot be "
                f"divided by {ranks}"
            )
