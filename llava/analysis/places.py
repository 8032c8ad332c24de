"""Where visual and textual tokens, and the crops, of a batch stand. All of it is counted on the CPU, once a batch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from llava.mllm.configuration import LlavaOVManagerConfig
from llava.mllm.visual_input import image_layouts, video_layouts


@dataclass(frozen=True)
class Part:
    """Queries of one sample whose attention to its visual tokens is looked at, in ascending order.

    queries: (Q,), their places in the row. seen: how many visual tokens each may attend to, ascending, at least 1.
    beside: how many other tokens.
    """

    queries: torch.Tensor
    seen: list[int]
    beside: list[int]


@dataclass(frozen=True)
class Row:
    """One sample of a batch; all places are int64, count within its row and leave padding out.

    visual: (V,), tokens of images and videos. text: (T,), the others.
    """

    visual: torch.Tensor
    text: torch.Tensor

    @property
    def parts(self) -> dict[str, Part]:
        """visual: the visual tokens among themselves. textual: the text behind a visual token, asking those before."""
        first = self.visual[:1]
        behind = self.text[self.text > first] if len(first) else self.text[:0]
        return {"visual": self._part(self.visual), "textual": self._part(behind)}

    def _part(self, queries: torch.Tensor) -> Part:
        seen, beside = (torch.searchsorted(keys, queries, right=True).tolist() for keys in (self.visual, self.text))
        return Part(queries, seen, beside)


def rows_of(inputs: Mapping[str, Any], config: LlavaOVManagerConfig) -> list[Row]:
    """The samples of a batch that is padded on either side, by its attention_mask or its sequence_lengths.

    inputs: as LlavaOVManagerForConditionalGeneration.forward takes them, each sample in a row of its own.
    """
    ids = inputs["input_ids"].cpu()
    real = torch.ones_like(ids, dtype=torch.bool)
    if inputs.get("attention_mask") is not None:
        real = inputs["attention_mask"].cpu().bool()
    elif inputs.get("sequence_lengths") is not None:
        real = torch.arange(ids.shape[1]) < torch.tensor(inputs["sequence_lengths"])[:, None]
    visual = (ids == config.image_token_id) | (ids == config.video_token_id)
    return [
        Row((is_visual & is_real).nonzero()[:, 0], (~is_visual & is_real).nonzero()[:, 0])
        for is_visual, is_real in zip(visual, real, strict=True)
    ]


def samples_of_crops(inputs: Mapping[str, Any], config: LlavaOVManagerConfig) -> torch.Tensor:
    """(C,), the row of the sample of each crop, in the tower's order: of all images, then frames of all videos."""
    samples: list[int] = []
    if inputs.get("pixel_values") is not None:
        layouts = image_layouts(config, inputs["image_sizes"], inputs.get("batch_num_images"))
        samples += _repeated(inputs.get("batch_num_images"), [layout.num_crops for layout in layouts])
    if inputs.get("pixel_values_videos") is not None:
        frames = [layout.num_crops for layout in video_layouts(config, inputs["video_num_frames"])]
        samples += _repeated(inputs.get("batch_num_videos"), frames)
    return torch.tensor(samples)


def _repeated(counts: Any, crops: list[int]) -> list[int]:
    """counts: of each sample, how many images (or videos) it has; None for one each. crops: of each of these."""
    listed = [1] * len(crops) if counts is None else [int(count) for count in counts]
    samples = [sample for sample, count in enumerate(listed) for _ in range(count)]
    return [sample for sample, number in zip(samples, crops, strict=True) for _ in range(number)]
