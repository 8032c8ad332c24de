"""The language model in 4 bits (NF4), by bitsandbytes."""

from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import BitsAndBytesConfig

from llava.checkpoint.folder import has_adapters
from llava.errors import LlavaError
from llava.mllm import LlavaOVManagerConfig
from llava.mllm.kinds import head_width
from llava.mllm.parts import PREFIXES

BLOCK_OF_4BIT, ROWS_OF_4BIT = 64, 32  # bitsandbytes: weights with one scale, and rows that it packs together on a CPU


def four_bits(folder: Path, device: torch.device, dtype: torch.dtype) -> dict:
    """Options of from_pretrained. The tower, from which all that is seen comes, and the head stay as they are."""
    if find_spec("bitsandbytes") is None:
        raise LlavaError("loading in 4 bits needs bitsandbytes: pip install 'llava-ov-manager[quantization]'")
    if has_adapters(folder):
        raise LlavaError(
            f"{folder} has LoRA adapters, which cannot be merged into 4 bits; merge them first: "
            f"llava convert merge-lora {folder} --out DIR"
        )
    parts = [prefix for part, prefixes in PREFIXES.items() if part != "language_model" for prefix in prefixes]
    kept = ["lm_head", *(prefix.removesuffix(".") for prefix in parts)]
    config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype, llm_int8_skip_modules=kept
    )
    return {"quantization_config": config, "device_map": {"": device}}


def check_widths(folder: Path) -> None:
    """Raises LlavaError for a language model whose matrices are not whole blocks; on some CPUs they fail when used."""
    text = LlavaOVManagerConfig.from_pretrained(folder).text_config
    head = head_width(text)
    for name, width, block in (
        ("hidden_size", text.hidden_size, BLOCK_OF_4BIT),
        ("intermediate_size", text.intermediate_size, BLOCK_OF_4BIT),
        ("num_attention_heads * head_dim", text.num_attention_heads * head, BLOCK_OF_4BIT),
        ("num_key_value_heads * head_dim", text.num_key_value_heads * head, ROWS_OF_4BIT),
    ):
        if width % block:
            raise LlavaError(f"{folder} cannot be loaded in 4 bits: {name} is {width}, no multiple of {block}")
