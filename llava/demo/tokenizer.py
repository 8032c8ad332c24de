"""A tokenizer trained on the spot, with Qwen2's splitting rule and special tokens."""

import numpy as np
from transformers import Qwen2Tokenizer

from llava.constants import SYSTEM_MESSAGE
from llava.data.conversation import add_visual_tokens
from llava.demo.digit_pages import CAPTION, KINDS, ask, ask_arithmetic, draw_numbers, read_row

VOCABULARY = 384  # 256 bytes, merges, and the special tokens; a multiple of 64


def train_tokenizer() -> Qwen2Tokenizer:
    """Byte-level BPE on the domain's text. Digits stay single tokens; <image> and <video> lie inside VOCABULARY."""
    tokenizer = Qwen2Tokenizer().train_new_from_iterator(
        _texts(), VOCABULARY - 8, new_special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    )
    tokenizer.pad_token, tokenizer.eos_token = "<|endoftext|>", "<|im_end|>"
    add_visual_tokens(tokenizer, VOCABULARY)
    return tokenizer


def _texts() -> list[str]:
    rng = np.random.default_rng(0)
    texts = [SYSTEM_MESSAGE, CAPTION, "system\n", "user\n", "assistant\n"]
    for _ in range(200):
        numbers = draw_numbers(rng)
        questions = [ask(rng, numbers, kind) for kind in KINDS] + [ask_arithmetic(rng)]
        texts += [question.text for question in questions] + [read_row(numbers, row) for row in range(len(numbers))]
    return texts
