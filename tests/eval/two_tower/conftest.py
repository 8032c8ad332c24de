"""The tiny tokenizer and processor of the tests of pairs."""

from tests.data.pairs.conftest import processor, tokenizer

__all__ = ["processor", "tokenizer"]
