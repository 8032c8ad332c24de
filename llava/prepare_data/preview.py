"""`llava data preview`: what the model sees of one sample - its crops, its tokens and what is supervised.

Everything shown is read back from the inputs that training would feed: the crops are the processor's, denormalised, and
the prompt is decoded from the token ids.
"""

import sys
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from llava.anyres import ImageLayout, VideoLayout
from llava.checkpoint.folder import CONFIG
from llava.constants import IGNORE_INDEX
from llava.data.dataset import SupervisedDataset
from llava.data.inspect import Fault, inspect_sample
from llava.data.json_rows import SUFFIXES
from llava.data.mixture import load_mixture, read_records
from llava.data.processor import LlavaOVManagerProcessor
from llava.data.schema import Sample, parse_sample
from llava.errors import DataError, LlavaError
from llava.mllm import LlavaOVManagerConfig  # also registers the Auto classes by which a processor's parts are found
from llava.printable import visible

NEWLINE_MARK = "\\n"  # put before a supervised newline, which no colour would show


@dataclass(frozen=True)
class Span:
    """A run of tokens that are alike: all supervised, all not, or all of one image or video, named in `visual`."""

    text: str
    tokens: int
    supervised: bool
    visual: str = ""


@dataclass(frozen=True)
class PreviewedImage:
    """One image. size: (width, height) of the file. first_crop: its place among the sample's crops.

    crops: uint8 (crops, S, S, 3). side: patches per side of a crop.
    """

    name: str
    size: tuple[int, int]
    layout: ImageLayout
    first_crop: int
    crops: np.ndarray
    side: int

    @property
    def kept_patches(self) -> list[list[int]]:
        """Patches of each tile, by rows of tiles, that unpadding leaves."""
        row0, column0, rows, columns = self.layout.window
        wide, high = self.layout.grid
        return [
            [
                _overlap(y * self.side, self.side, row0, rows) * _overlap(x * self.side, self.side, column0, columns)
                for x in range(wide)
            ]
            for y in range(high)
        ]


@dataclass(frozen=True)
class PreviewedVideo:
    """One video. frames: uint8 (frames, S, S, 3)."""

    name: str
    layout: VideoLayout
    frames: np.ndarray


@dataclass(frozen=True)
class Preview:
    """One sample as the model sees it."""

    title: str
    images: tuple[PreviewedImage, ...]
    videos: tuple[PreviewedVideo, ...]
    spans: tuple[Span, ...]

    @property
    def heading(self) -> list[str]:
        """Lines that name the sample and tell where its visual tokens come from."""
        lines = [self.title]
        for number, image in enumerate(self.images, start=1):
            lines += describe_image(image, number)
        lines += [describe_video(video, number) for number, video in enumerate(self.videos, start=1)]
        return [visible(line) for line in lines]

    @property
    def totals(self) -> str:
        """Tokens, supervised tokens, visual tokens and crops in one line."""
        tokens = sum(span.tokens for span in self.spans)
        supervised = sum(span.tokens for span in self.spans if span.supervised)
        visual = sum(span.tokens for span in self.spans if span.visual)
        crops = sum(len(image.crops) for image in self.images) + sum(len(video.frames) for video in self.videos)
        return f"{tokens} tokens, {supervised} of them supervised, {visual} visual; {crops} crops"


def load_processor(folder: str | Path) -> LlavaOVManagerProcessor:
    """The processor of a model folder; no weights are read. Raises LlavaError when there is none."""
    if not Path(folder).is_dir():
        raise LlavaError(f"{folder}: no such model folder")
    try:
        return LlavaOVManagerProcessor.from_pretrained(folder)
    except LlavaError:
        raise
    except Exception as error:  # transformers and tokenizers each raise their own kinds
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise LlavaError(f"{folder}: its processor cannot be loaded: {reason}") from error


def model_positions(folder: str | Path) -> int | None:
    """How many tokens the language model of a model folder reads; None for a folder with a processor alone."""
    if not (Path(folder) / CONFIG).is_file():
        return None
    try:
        return LlavaOVManagerConfig.from_pretrained(folder).text_config.max_position_embeddings
    except (OSError, ValueError, RecursionError) as error:
        raise LlavaError(f"{folder}: its config.json cannot be read: {' '.join(str(error).split())}") from error


def read_sample(data: str | Path, index: int, seed: int) -> Sample:
    """Sample `index`, from 0, of a JSON or JSONL file, or of a mixture YAML, whose `random` rows depend on `seed`."""
    data = Path(data)
    is_mixture = data.suffix.lower() not in SUFFIXES
    rows = load_mixture(data, seed).samples if is_mixture else read_records(data)
    if not 0 <= index < len(rows):
        raise DataError(f"index {index} is out of range: {data} has {len(rows)} samples, counted from 0")
    return rows[index] if is_mixture else parse_sample(rows[index], f"{data} row {index + 1}")


def preview_sample(sample: Sample, processor: LlavaOVManagerProcessor, **options: Any) -> Preview:
    """Encodes the sample as training does, whatever its length. Raises DataError that names the sample.

    options: SupervisedDataset's, on images, template, labels and videos.
    """
    encoded = SupervisedDataset([sample], processor, max_length=sys.maxsize, **options)[0]
    return preview_encoded(sample, encoded, processor)


def describe_length(sample: Sample, processor: LlavaOVManagerProcessor, **options: Any) -> str | None:
    """What training makes of a sample that is too long, in words; None where it is short enough.

    options: SupervisedDataset's; those on lengths as training is to have them.
    """
    dataset = SupervisedDataset([sample], processor, **options)
    inspected = inspect_sample(sample, dataset.image_folder, dataset.video_sampling)
    remark = dataset.too_long(sample, inspected.image_sizes, inspected.videos)
    if remark is None:
        return None
    return f"training refuses it: {remark.message}" if isinstance(remark, Fault) else f"in training {remark.message}"


def preview_encoded(sample: Sample, encoded: dict, processor: LlavaOVManagerProcessor) -> Preview:
    """encoded: what LlavaOVManagerProcessor.encode_sample made of the whole sample."""
    image_processor = processor.image_processor
    images, videos, first = [], [], 0
    for name, (height, width) in zip(sample.images, encoded["image_sizes"].tolist() if sample.images else ()):
        layout = image_processor.layout((width, height), len(sample.images) > 1)
        crops = _channels_last(encoded["pixel_values"][first : first + layout.num_crops])
        side = image_processor.size // image_processor.patch_size
        images.append(PreviewedImage(name, (width, height), layout, first, crops, side))
        first += layout.num_crops
    first = 0
    for name, count in zip(sample.videos, encoded["video_num_frames"].tolist() if sample.videos else ()):
        frames = _channels_last(encoded["pixel_values_videos"][first : first + count])
        videos.append(PreviewedVideo(name, image_processor.video_layout(count), frames))
        first += count
    lengths = {
        processor.image_token_id: ("image", [image.layout.num_tokens for image in images]),
        processor.video_token_id: ("video", [video.layout.num_tokens for video in videos]),
    }
    spans = _spans(encoded["input_ids"], encoded["labels"], processor.tokenizer, lengths)
    return Preview(str(sample), tuple(images), tuple(videos), tuple(spans))


def _spans(
    ids: list[int],
    labels: list[int],
    tokenizer: PreTrainedTokenizerBase,
    lengths: dict[int, tuple[str, list[int]]],
) -> list[Span]:
    """lengths: {placeholder id: (kind, tokens of each)}; images can follow each other without text between."""
    owners = {
        token_id: iter([f"{kind} {number}" for number, length in enumerate(counts, start=1) for _ in range(length)])
        for token_id, (kind, counts) in lengths.items()
    }
    visuals = [next(owners[token]) if token in owners else "" for token in ids]
    keys = [(visual, label != IGNORE_INDEX) for visual, label in zip(visuals, labels)]
    spans = []
    for (visual, supervised), run in groupby(range(len(ids)), key=keys.__getitem__):
        tokens = [ids[position] for position in run]
        text = tokenizer.decode(tokens, clean_up_tokenization_spaces=False)
        text = f"<{visual.split()[0]} x{len(tokens)}>" if visual else text
        spans.append(Span(text, len(tokens), supervised, visual))
    return spans


def _channels_last(crops: torch.Tensor) -> np.ndarray:
    """uint8 (crops, 3, S, S) to (crops, S, S, 3)."""
    return crops.numpy().transpose(0, 2, 3, 1)


def _overlap(begin: int, length: int, other_begin: int, other_length: int) -> int:
    return max(min(begin + length, other_begin + other_length) - max(begin, other_begin), 0)


def describe_image(image: PreviewedImage, number: int) -> list[str]:
    """Lines that tell where the tokens of an image come from."""
    layout, first = image.layout, image.first_crop
    title = f"image {number}: {image.name}, {image.size[0]} x {image.size[1]} pixels, {layout.num_tokens} tokens"
    newline = " + 1 newline" if layout.one_crop_newline else ""
    lines = [title, f"  crop {first}, the whole image: {layout.base_tokens}{newline}"]
    if layout.num_crops > 1:
        wide, high = layout.grid
        joined = f"{high * image.side} x {wide * image.side} patches"
        kept = f"{layout.window[2]} x {layout.window[3]}"
        shrunk = f", shrunk to {layout.rows} x {layout.columns}" if layout.shrunk else ""
        lines.append(
            f"  crops {first + 1} to {first + wide * high}, {high} x {wide} tiles: {joined}, kept {kept}{shrunk}"
        )
        for row, counts in enumerate(image.kept_patches):
            begin = first + 1 + row * wide
            lines.append(f"    patches kept in crops {begin} to {begin + wide - 1}: {' '.join(map(str, counts))}")
        newlines = f" + {layout.rows} newlines" if layout.row_newline else ""
        total = layout.num_tokens - layout.base_tokens
        if (layout.rows, layout.columns) == (0, 0):
            lines.append("    none in the sequence: the model's fusion takes them in by another way")
        else:
            lines.append(f"    {layout.rows} rows x {layout.columns} columns{newlines} = {total}")
    return lines


def describe_video(video: PreviewedVideo, number: int) -> str:
    """A line that tells where the tokens of a video come from."""
    layout = video.layout
    frames = f"{layout.num_frames} frames x {layout.pooled_side} rows x {layout.pooled_side} columns"
    return f"video {number}: {video.name}, {frames} + 1 newline = {layout.num_tokens} tokens"


def marked(span: Span) -> str:
    """The text of a span as it is shown: supervised newlines are made visible."""
    text = visible(span.text)
    return text.replace("\n", f"{NEWLINE_MARK}\n") if span.supervised else text


def render_text(preview: Preview, color: bool) -> str:
    """Everything but the pixels. Supervised text stands on green with `color`, else between ⟦ and ⟧."""
    prompt = "".join(_paint(span) if color else _bracket(span) for span in preview.spans)
    legend = f"supervised: {'on green' if color else 'between ⟦ and ⟧'}, newlines there written {NEWLINE_MARK}"
    return "\n".join([*preview.heading, "", prompt.removesuffix("\n"), "", preview.totals, legend])


def _bracket(span: Span) -> str:
    return f"⟦{marked(span)}⟧" if span.supervised else marked(span)


def _paint(span: Span) -> str:
    """Each line is coloured for itself, so that no background runs to the terminal's edge."""
    code = "36" if span.visual else "30;42" if span.supervised else None
    if code is None:
        return marked(span)
    return "\n".join(f"\x1b[{code}m{line}\x1b[0m" if line else "" for line in marked(span).split("\n"))
