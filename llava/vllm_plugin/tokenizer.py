"""The tokenizer as the rest of this package uses it: what people write is text, also where it looks like a token.

vLLM renders a chat's messages with the tokenizer's apply_chat_template and then encodes the prompt; see
llava/data/chat_messages.py for what is marked between the two, and llava/data/rendered_prompt.py for how it is read.
"""

from collections.abc import Sequence
from copy import copy
from pathlib import Path
from typing import Any

from transformers import BatchEncoding
from vllm.tokenizers.hf import CachedHfTokenizer

from llava.data.chat_messages import checked_messages, marked, special_tokens
from llava.data.rendered_prompt import rendered_ids


class PromptTokenizer(CachedHfTokenizer):
    """vLLM's, whose tokenizers read prompts as this package does."""

    @classmethod
    def from_pretrained(cls, path_or_repo_id: str | Path, *args: Any, **kwargs: Any) -> Any:
        """The folder's tokenizer."""
        return reading_prompts(super().from_pretrained(path_or_repo_id, *args, **kwargs))


def reading_prompts(tokenizer: Any) -> Any:
    """The same tokenizer, of a class of its own."""
    plain = tokenizer.__class__

    class Reading(plain):
        def apply_chat_template(self, conversation: Sequence[Any], *args: Any, **kwargs: Any) -> Any:
            messages = marked(checked_messages(conversation), special_tokens(self), images_apart=False)
            tokenize = kwargs.pop("tokenize", True)
            kwargs.pop("return_dict", None)
            text = super().apply_chat_template(messages, *args, tokenize=False, **kwargs)
            return rendered_ids(self._plain(), text) if tokenize else text

        def __call__(self, text: Any = None, *args: Any, **kwargs: Any) -> BatchEncoding:
            if not isinstance(text, str) or kwargs.get("split_special_tokens"):
                return super().__call__(text, *args, **kwargs)
            ids = rendered_ids(self._plain(), text)
            if kwargs.get("truncation") and kwargs.get("max_length") is not None:
                limit = kwargs["max_length"]
                ids = ids[:limit] if self.truncation_side == "right" else ids[-limit:]
            return BatchEncoding({"input_ids": ids, "attention_mask": [1] * len(ids)})

        def encode(self, text: Any, *args: Any, **kwargs: Any) -> list[int]:
            return self(text, *args, **kwargs)["input_ids"]

        def _plain(self) -> Any:
            return tokenizer

        def __reduce__(self) -> Any:
            return reading_prompts, (tokenizer,)

    Reading.__name__ = f"Reading{plain.__name__}"
    reading = copy(tokenizer)
    reading.__class__ = Reading
    return reading
