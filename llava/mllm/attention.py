"""Which attention implementation to run."""

from transformers.utils import is_flash_attn_2_available


def best_attention(on_gpu: bool, half_precision: bool) -> str:
    """flash_attention_2 where it is installed and can run (a GPU, 16-bit numbers), else sdpa."""
    return "flash_attention_2" if on_gpu and half_precision and is_flash_attn_2_available() else "sdpa"
