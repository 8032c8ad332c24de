"""Texts that end an answer."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase, StoppingCriteria


class StopStrings(StoppingCriteria):
    """Ends an answer once it contains one of some texts; what follows would be cut away.

    transformers' own criterion also takes a text that begins in the prompt, such as the newline behind "assistant".
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str], prompt_length: int):
        self.tokenizer, self.stop, self.prompt_length = tokenizer, stop, prompt_length
        self.longest = max(len(text.encode()) for text in stop)  # tokens: none is less than a byte

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """Which rows of input_ids (B, L), prompt and answer, are done: booleans (B,)."""
        recent = input_ids[:, max(self.prompt_length, input_ids.shape[1] - self.longest) :].tolist()
        done = [
            self._stops(text) and self._stops(self._decoded(row[self.prompt_length :]))
            for text, row in zip(map(self._decoded, recent), input_ids, strict=True)
        ]
        return torch.tensor(done, device=input_ids.device)

    def _decoded(self, ids: torch.Tensor) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True)

    def _stops(self, answer: str) -> bool:
        return any(text in answer for text in self.stop)


def cut(text: str, stop: Sequence[str]) -> str:
    """The text before the first of these."""
    return min((text.partition(mark)[0] for mark in stop), key=len, default=text)
