"""Encoded samples to one batch, which says where everything in it stands."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch.nn.functional import pad

from llava.constants import IGNORE_INDEX

# What a sample has of each modality: pixels, their sizes, and where in its text they stand.
VISUAL_KEYS = {
    "images": ("pixel_values", "image_sizes", "image_spans"),
    "videos": ("pixel_values_videos", "video_num_frames", "video_spans"),
}


@dataclass(frozen=True)
class Collator:
    """Joins the text of samples, and lays the crops of all images, and the frames of all videos, one after the other.

    What is known here the model need not ask the device for, and wait. Tensors go where the model is; what Python asks
    for, lengths and sizes, are lists, which stay.

    packing: put all samples in one row, one behind the other, instead of in rows that are padded on the right.
    questions: finds the questions about what a batch shows, where the model asks for them; see
        llava.mllm.questions.question_finder.
    """

    pad_token_id: int
    packing: bool = False
    questions: Callable[..., list[torch.Tensor]] | None = None

    def __call__(self, items: list[dict]) -> dict:
        """items: see LlavaOVManagerProcessor.encode_sample, or SupervisedDataset, which adds each sample's origin.

        Returns input_ids, labels (B, L). They need no mask: no token sees the padding on its right. If any sample has
        images, pixel_values (crops, 3, S, S), image_sizes (height and width of each) and batch_num_images (of each
        sample); if any has videos, pixel_values_videos (frames, 3, S, S), video_num_frames and batch_num_videos.
        With packing input_ids, position_ids, labels are (1, sum of L): the positions, which begin anew with each
        sample, keep them apart. The labels then leave out each sample's first token, which nothing predicts.

        sequence_lengths: tokens of each sample. Positions are int64 and flat, in (batch * sequence) order:
        visual_positions (V,) of all images' tokens, then of all videos'; supervised_positions (n,), behind which a
        supervised token stands. With `questions` also question_positions (Q,), of all images' and then all videos'
        questions, and question_lengths. Where the items have origins, samples has the B of them, for messages and
        counts; the model does not take it.
        """
        lengths = [len(item["input_ids"]) for item in items]
        batch: dict[str, Any] = _packed(items) if self.packing else self._padded(items)
        starts = list(accumulate(lengths[:-1], initial=0))
        if not self.packing:
            starts = [row * max(lengths) for row in range(len(items))]
        spans = []
        for modality, (pixels, sizes, places) in VISUAL_KEYS.items():
            showing = [(start, item) for start, item in zip(starts, items) if item[f"num_{modality}"]]
            if showing:
                batch[pixels] = torch.cat([item[pixels] for _, item in showing])
                batch[sizes] = [size for _, item in showing for size in item[sizes].tolist()]
                batch[f"batch_num_{modality}"] = [item[f"num_{modality}"] for item in items]
            spans += [(start + first, tokens) for start, item in showing for first, tokens in item[places]]
        batch["sequence_lengths"] = lengths
        batch["visual_positions"] = _ranges(spans)
        batch["supervised_positions"] = supervised_positions(batch["labels"])
        if self.questions is not None:
            sequences = [(start, start + length) for start, length in zip(starts, lengths)]
            tokens = [count for _, count in spans]
            questions = self.questions(batch["input_ids"], sequences, batch["visual_positions"], tokens)
            batch["question_positions"] = torch.cat(questions)
            batch["question_lengths"] = [len(question) for question in questions]
        if all("sample" in item for item in items):
            batch["samples"] = [item["sample"] for item in items]
        return batch

    def _padded(self, items: list[dict]) -> dict[str, torch.Tensor]:
        length = max(len(item["input_ids"]) for item in items)
        return {
            "input_ids": _pad([item["input_ids"] for item in items], length, self.pad_token_id),
            "labels": _pad([item["labels"] for item in items], length, IGNORE_INDEX),
        }


def take_origins(batch: dict) -> list:
    """Takes the samples' origins out of a batch; what is left is what the model takes."""
    return batch.pop("samples")


def supervised_positions(labels: torch.Tensor) -> torch.Tensor:
    """The flat positions (n,) of the tokens behind which, in their row of labels (B, L), a supervised token stands."""
    return (pad(labels[:, 1:], (0, 1), value=IGNORE_INDEX).flatten() != IGNORE_INDEX).nonzero()[:, 0]


def _packed(items: list[dict]) -> dict[str, torch.Tensor]:
    labels = [[IGNORE_INDEX, *item["labels"][1:]] for item in items]
    return {
        "input_ids": torch.tensor([[token for item in items for token in item["input_ids"]]]),
        "position_ids": torch.tensor([[place for item in items for place in range(len(item["input_ids"]))]]),
        "labels": torch.tensor([[label for of_one in labels for label in of_one]]),
    }


def _pad(rows: list[list[int]], length: int, value: int) -> torch.Tensor:
    return torch.tensor([row + [value] * (length - len(row)) for row in rows])


def _ranges(spans: list[tuple[int, int]]) -> torch.Tensor:
    return torch.tensor([place for first, count in spans for place in range(first, first + count)], dtype=torch.int64)
