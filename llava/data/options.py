"""The keywords of the processor and of the image processor: respected or refused by name, never ignored."""

import math
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any

from llava.errors import LlavaError

TENSORS = ("pt", "np", None)
# Keywords of transformers' processors that name what is done here always, and what it is.
FIXED = {
    "do_convert_rgb": True,
    "do_resize": True,
    "do_pad": True,
    "do_center_crop": False,
    "data_format": "channels_first",
    "rescale_factor": 1 / 255,
    "device": "cpu",
    "add_special_tokens": False,
    "return_mm_token_type_ids": False,
}
PADDING = {True: "longest", False: "do_not_pad"}
KINDS = ("text_kwargs", "images_kwargs", "videos_kwargs", "audio_kwargs", "common_kwargs")


@dataclass(frozen=True)
class PixelOptions:
    """do_rescale: to values from 0 to 1. do_normalize: by mean and deviation. Without both, pixels stay uint8.

    input_data_format: `channels_first` or `channels_last`, of arrays; None to tell by their shapes.
    """

    do_rescale: bool = True
    do_normalize: bool = True
    input_data_format: str | None = None

    def __post_init__(self) -> None:
        if self.do_normalize and not self.do_rescale:
            raise LlavaError("do_rescale=False needs do_normalize=False: mean and deviation are of values from 0 to 1")
        if self.input_data_format not in (None, "channels_first", "channels_last"):
            raise LlavaError(f"unknown input_data_format {self.input_data_format!r}; channels_first or channels_last")


@dataclass(frozen=True)
class VideoOptions(PixelOptions):
    """Which frames are taken: num_frames, or fps a second, each the first of as many equal parts, transformers' way.

    Without either, of a file those of EVERY_SECOND, as training and chat take them, or with do_sample_frames=False all
    of them; of a video that is given as its frames, all.
    """

    num_frames: int | None = None
    fps: float | None = None
    do_sample_frames: bool | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_frames is not None and self.fps is not None:
            raise LlavaError(f"num_frames={self.num_frames} and fps={self.fps} exclude each other")
        if self.num_frames is not None and (not isinstance(self.num_frames, Integral) or self.num_frames < 1):
            raise LlavaError(f"num_frames must be a whole number from 1, found {self.num_frames!r}")
        if self.fps is not None and not (isinstance(self.fps, int | float) and 0 < self.fps < math.inf):
            raise LlavaError(f"fps must be a positive number, found {self.fps!r}")
        chosen = self.num_frames is not None or self.fps is not None
        if self.do_sample_frames is not None and self.do_sample_frames != chosen:
            raise LlavaError(f"do_sample_frames={self.do_sample_frames} and num_frames or fps: give both or neither")


NORMALIZED, AS_UINT8 = PixelOptions(), PixelOptions(do_rescale=False, do_normalize=False)


@dataclass(frozen=True)
class TextOptions:
    """As transformers' tokenizers have them, but that max_length without truncation is the most that is taken.

    return_offsets_mapping, return_text_replacement_offsets: see rendered_spans.
    """

    padding: str = "longest"
    truncation: bool = False
    max_length: int | None = None
    padding_side: str | None = None
    pad_to_multiple_of: int | None = None
    return_attention_mask: bool | None = None
    return_offsets_mapping: bool = False
    return_text_replacement_offsets: bool = False


@dataclass(frozen=True)
class Options:
    """All keywords of a call of the processor, by what reads them."""

    text: TextOptions
    images: PixelOptions
    videos: VideoOptions
    return_tensors: str | None


def read_options(keywords: dict[str, Any], padding: Any = True, return_tensors: str | None = "pt") -> Options:
    """The options that keywords name, flat or in text_kwargs, images_kwargs, videos_kwargs and common_kwargs.

    Raises LlavaError for a keyword that is not known, that is given twice, or that asks for what is not done here.
    """
    flat = {name: value for name, value in keywords.items() if name not in KINDS}
    nested = {kind: dict(keywords.get(kind) or {}) for kind in KINDS}
    flat = _joined(flat, nested["common_kwargs"])
    if nested["audio_kwargs"]:
        raise LlavaError("audio_kwargs: this model reads text, images and videos, not audio")
    tensors = [flat.pop("return_tensors", return_tensors)]
    for options in nested.values():
        tensors += [options.pop("return_tensors")] if "return_tensors" in options else []
    of_images, of_videos = (
        {name: flat[name] for name in flat if name in kind.__dataclass_fields__ or name in FIXED}
        for kind in (PixelOptions, VideoOptions)
    )
    of_text = {name: value for name, value in flat.items() if name not in VideoOptions.__dataclass_fields__}
    text = _joined({"padding": padding} if "padding" not in nested["text_kwargs"] else {}, of_text)
    return Options(
        _text_options(_joined(text, nested["text_kwargs"])),
        pixel_options(_joined(of_images, nested["images_kwargs"])),
        VideoOptions(**_checked(_joined(of_videos, nested["videos_kwargs"]), VideoOptions)),
        checked_tensors(tensors[-1]),
    )


def pixel_options(keywords: dict[str, Any]) -> PixelOptions:
    """The keywords of the image processor. Raises LlavaError for one that it does not take."""
    return PixelOptions(**_checked(keywords, PixelOptions))


def checked_tensors(kind: Any) -> str | None:
    """The kind of tensors, as a text; LlavaError for one that is not made."""
    kind = getattr(kind, "value", kind)
    if kind not in TENSORS:
        raise LlavaError(f"return_tensors={kind!r} is not possible here; choose 'pt', 'np' or None for lists")
    return kind


def _text_options(keywords: dict[str, Any]) -> TextOptions:
    given = _checked(keywords, TextOptions)
    for name, of_bool in (("padding", PADDING), ("truncation", {"longest_first": True, "do_not_truncate": False})):
        if name in given:
            value = getattr(given[name], "value", given[name])
            given[name] = of_bool.get(value, value)
    options = replace(TextOptions(), **given)
    for name, value, choices in (
        ("padding", options.padding, ("longest", "max_length", "do_not_pad")),
        ("truncation", options.truncation, (True, False)),
        ("padding_side", options.padding_side, ("left", "right", None)),
    ):
        if value not in choices:
            raise LlavaError(f"unknown {name} {value!r}; choose one of {', '.join(map(repr, choices))}")
    return options


def _joined(some: dict[str, Any], others: dict[str, Any]) -> dict[str, Any]:
    twice = sorted(name for name in set(some) & set(others) if some[name] != others[name])
    if twice:
        raise LlavaError(f"{twice[0]} is given twice, as {some[twice[0]]!r} and as {others[twice[0]]!r}")
    return some | others


def _checked(keywords: dict[str, Any], options: type[TextOptions | PixelOptions]) -> dict[str, Any]:
    """Those that are options of this kind and are not None; the others must name what is done anyway."""
    given = {name: value for name, value in keywords.items() if value is not None}
    for name, value in given.items():
        value = getattr(value, "value", value)  # of transformers' enumerations
        if name in FIXED and value != FIXED[name] and str(value) != str(FIXED[name]):
            raise LlavaError(f"{name}={value!r} is not possible here: it is always {FIXED[name]!r}")
        if name not in FIXED and name not in options.__dataclass_fields__:
            taken = ", ".join([*TextOptions.__dataclass_fields__, *VideoOptions.__dataclass_fields__, "return_tensors"])
            raise LlavaError(f"the processor does not take {name!r} here; its options are {taken}")
    return {name: value for name, value in given.items() if name not in FIXED}
