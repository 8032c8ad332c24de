"""Greedy answers to held-out samples, asked as the model is trained, while it is spread over ranks.

Where parameters are partitioned (ZeRO-3) every use of one takes all ranks: all then answer the same samples in the same
batches, so that none has an image where another has none, and go on until the last answer ends on every rank. Each
token gathers the whole model once. Elsewhere a rank has all it needs, and the samples are shared out.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from transformers import PreTrainedModel

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN, VIDEO_TOKEN
from llava.data.collator import Collator
from llava.data.dataset import SupervisedDataset
from llava.data.schema import Sample
from llava.engine.engine import plain_generation


@dataclass(frozen=True)
class HeldOut:
    """What is evaluated while a stage trains.

    Attributes:
        dataset: the held-out samples.
        costs: of each, for grouping.
        prompts: those that are answered, as last_exchange leaves them, encoded with the label rule `answers`.
        max_new_tokens: of an answer.
    """

    dataset: SupervisedDataset
    costs: np.ndarray
    prompts: SupervisedDataset
    max_new_tokens: int

    def batch(self, indices: Sequence[int]) -> dict:
        """Left-padded inputs for generate, of some of `prompts`.

        Raises:
            DataError: for a sample that cannot be read.
        """
        items = [self.prompts[index] for index in indices]
        rows = [item["input_ids"][: answer_start(item["labels"])] for item in items]
        tokenizer = self.prompts.processor.tokenizer
        batch = Collator(tokenizer.pad_token_id)(items)
        visual = {key: value for key, value in batch.items() if key in self.prompts.processor.model_input_names}
        return visual | dict(tokenizer.pad({"input_ids": rows}, padding_side="left", return_tensors="pt"))

    @torch.no_grad()
    def answers(self, model: PreTrainedModel, batch: dict, all_ranks: bool) -> list[str]:
        """The model's answers to a batch. all_ranks: every rank generates, until all are done."""
        tokenizer, template = self.prompts.processor.tokenizer, self.prompts.encoding["template"]
        settings = plain_generation(tokenizer, max_new_tokens=self.max_new_tokens, do_sample=False, use_cache=True)
        output = model.generate(**batch, generation_config=settings, synced_gpus=all_ranks)
        texts = tokenizer.batch_decode(output[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
        if template == "plain":  # a newline ends a caption
            texts = [text.lstrip().partition("\n")[0] for text in texts]
        return [text.strip() for text in texts]


def last_exchange(sample: Sample) -> Sample:
    """The sample up to its last answer."""
    last = max(number for number, turn in enumerate(sample.turns) if turn.role == "gpt" and turn.text.strip())
    turns = sample.turns[: last + 1]
    shown = {token: sum(turn.text.count(token) for turn in turns) for token in (IMAGE_TOKEN, VIDEO_TOKEN)}
    images, videos = sample.images[: shown[IMAGE_TOKEN]], sample.videos[: shown[VIDEO_TOKEN]]
    return replace(sample, turns=turns, images=images, videos=videos)


def answer_start(labels: Sequence[int]) -> int:
    """Where the last unbroken run of supervised tokens begins."""
    end = max(position for position, label in enumerate(labels) if label != IGNORE_INDEX)
    while end and labels[end - 1] != IGNORE_INDEX:
        end -= 1
    return end


def question_and_reference(sample: Sample) -> tuple[str, str]:
    """The turn before the last one, and the last one, of a sample from last_exchange."""
    *before, answer = sample.turns
    return before[-1].text if before else "", answer.text
