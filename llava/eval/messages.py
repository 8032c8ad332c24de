"""From the harness's requests to ours: messages and contexts to a dialogue, settings, images to noise."""

import json
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from loguru import logger
from PIL import Image

from llava.constants import IMAGE_TOKEN, VIDEO_TOKEN
from llava.data.color import to_rgb
from llava.data.conversation import literal
from llava.data.images import open_image
from llava.data.placeholders import place_in_front
from llava.data.schema import Dialogue, Turn
from llava.data.video import VideoSampling, read_video
from llava.errors import LlavaError

DEFAULT_MAX_NEW_TOKENS = 1024  # for tasks that name no limit, as lmms-eval's LLaVA-OneVision model has it
HARNESS_DEFAULT_STOP = "\n\n"  # filled in by the harness when a task names no `until`; it would cut paragraphs
ROLES = {"user": "human", "assistant": "gpt", "system": "system"}
NOISE_SEED = 20250101  # keeps the noise apart from other streams drawn from small seeds
MAX_FRAMES = 32  # of a video, as lmms-eval's LLaVA-OneVision model has it
IMAGE_EXTENSIONS = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tiff", ".webp"}
IGNORED = {"image_aspect_ratio"}  # tiling is the checkpoint's own


@dataclass(frozen=True)
class Settings:
    """How to generate; requests with equal settings may share a batch."""

    max_new_tokens: int
    temperature: float
    top_p: float | None
    num_beams: int
    stop: tuple[str, ...]


def settings_from(gen_kwargs: dict) -> Settings:
    """Reads a task's `generation_kwargs`. `do_sample: false` wins over a temperature; unknown keys are logged."""
    settable = {"max_new_tokens", "temperature", "do_sample", "top_p", "num_beams", "until"}
    for key in sorted(set(gen_kwargs) - settable - IGNORED):
        logger.warning(f"generation_kwargs: {key}={gen_kwargs[key]!r} has no effect on this model")
    until = gen_kwargs.get("until") or []
    until = [until] if isinstance(until, str) else until
    temperature = gen_kwargs.get("temperature")
    if temperature is None:
        temperature = 1.0 if gen_kwargs.get("do_sample") else 0.0
    elif not gen_kwargs.get("do_sample", True):
        temperature = 0.0
    return Settings(
        max_new_tokens=int(gen_kwargs.get("max_new_tokens", DEFAULT_MAX_NEW_TOKENS)),
        temperature=float(temperature),
        top_p=gen_kwargs.get("top_p") if temperature > 0 else None,
        num_beams=int(gen_kwargs.get("num_beams", 1)),
        stop=tuple(text for text in until if text and text != HARNESS_DEFAULT_STOP),
    )


def with_rgb_images(doc: dict) -> dict:
    """The document with its images, also those in lists, in RGB as in training (see to_rgb).

    The tasks' own functions call Pillow's convert, for which 16 bits are white and what is transparent is black.
    """

    def plain(value: Any) -> Any:
        if isinstance(value, Image.Image):
            return to_rgb(value)[0]
        if isinstance(value, list) and any(isinstance(entry, Image.Image) for entry in value):
            return [plain(entry) for entry in value]
        return value

    return {column: plain(value) for column, value in doc.items()}


def dialogue_from(messages: list, max_frames: int = MAX_FRAMES, places: bool = True) -> Dialogue:
    """Turns the harness's `ChatMessage`s into a dialogue.

    Images and videos that open a message are joined in front of its text, as in training; later ones stand where the
    task put them. A text that writes `<image>` itself says where the images go; places False: it is a document's own
    word. max_frames: of each video.
    Raises LlavaError for audio and for files that cannot be read.
    """
    turns, images, videos = [], [], []
    for message in messages:
        pieces = []  # texts, and the placeholders of what is shown
        for content in message.content:
            if content.type == "text":
                pieces.append(content.text if places else literal(content.text))
            elif content.type == "image":
                images.append(_image(content.url))
                pieces.append(_Place(IMAGE_TOKEN))
            elif content.type == "video":
                span = (content.start_time, content.end_time)
                videos.append(_frames(content.url, span, max_frames))
                pieces.append(_Place(VIDEO_TOKEN))
            else:
                raise LlavaError(f"this model reads text, images and videos, not {content.type}")
        turns.append(Turn(ROLES[message.role], _text_of(pieces)))
    return Dialogue(turns, images, videos)


def dialogue_of_context(
    context: str, visuals: list | None, max_frames: int = MAX_FRAMES, places: bool = True
) -> Dialogue:
    """The dialogue of a simple request: what is shown is joined in front, and the text is as the task wrote it.

    So does lmms-eval's own LLaVA-OneVision model, which the paper ran. A context that writes `<image>` itself says
    where images, or the video, go; places False: it is a document's own word. One that is a JSON list of
    {"value": text} is a conversation, begun by a person.
    visuals: images, paths of images and videos, and dicts that name a video. Raises LlavaError as dialogue_from does.
    """
    images, videos, shown = [], [], []
    for visual in visuals or []:
        if isinstance(visual, Image.Image) or (isinstance(visual, str) and _extension(visual) in IMAGE_EXTENSIONS):
            images.append(_image(visual))
            shown.append(IMAGE_TOKEN)
        elif isinstance(visual, str) or (isinstance(visual, dict) and visual.get("type", "video") == "video"):
            videos.append(_frames(visual, (None, None), max_frames))
            shown.append(VIDEO_TOKEN)
        else:
            raise LlavaError(f"this model reads text, images and videos, not a {type(visual).__name__}")
    texts = [text if places else literal(text) for text in _conversation(context)]
    if videos and not images:
        texts = [text.replace(IMAGE_TOKEN, VIDEO_TOKEN) for text in texts]
    if not any(place in text for place in shown for text in texts):
        texts[0] = place_in_front(shown, texts[0])
    return Dialogue([Turn(("human", "gpt")[number % 2], text) for number, text in enumerate(texts)], images, videos)


class _Place(str):
    """A placeholder that stands for something shown, and not for itself."""


def _text_of(pieces: list[str]) -> str:
    if any(IMAGE_TOKEN in piece for piece in pieces if not isinstance(piece, _Place)):
        pieces = [piece for piece in pieces if not (isinstance(piece, _Place) and piece == IMAGE_TOKEN)]
    leading = next((index for index, piece in enumerate(pieces) if not isinstance(piece, _Place)), len(pieces))
    return place_in_front(pieces[:leading], "".join(pieces[leading:]))


def _conversation(context: str) -> list[str]:
    """The texts of a conversation that is written as JSON; any other context is one text."""
    try:
        turns = json.loads(context)
    except (ValueError, RecursionError):
        return [context]
    if isinstance(turns, list) and turns and all(isinstance(turn, dict) and "value" in turn for turn in turns):
        return [str(turn["value"]) for turn in turns]
    return [context]


def _image(given: Any) -> Image.Image:
    return to_rgb(given)[0] if isinstance(given, Image.Image) else open_image(given)


def _frames(given: Any, span: tuple[float | None, float | None], max_frames: int) -> list:
    """The frames of a video, evenly spaced from first to last, as lmms-eval's LLaVA-OneVision model takes them.

    given: a path, a dict with `url` or `path` and perhaps `video_start` and `video_end` in seconds, or the frames.
    """
    if isinstance(given, dict):
        span = (given.get("video_start", span[0]), given.get("video_end", span[1]))
        given = next((given[key] for key in ("url", "path", "video") if key in given), None)
    if isinstance(given, str | PathLike):
        sampling = VideoSampling(frames_upbound=max_frames, force_sample=True)
        return list(read_video(given, sampling, span[0] or 0.0, span[1]).frames)
    if isinstance(given, list | tuple | np.ndarray) and len(given):
        chosen = np.linspace(0, len(given) - 1, min(max_frames, len(given)), dtype=int)
        frames = [given[index] for index in chosen]
        return [frame if isinstance(frame, Image.Image) else Image.fromarray(frame) for frame in frames]
    raise LlavaError(f"a video must be a path or its frames, found {type(given).__name__}")


def _extension(path: str) -> str:
    return Path(path).suffix.lower()


def noise_like(image: Image.Image, *seed: int) -> Image.Image:
    """An RGB image of the same size whose pixels are drawn uniformly from 0..255; the same for the same seed."""
    pixels = np.random.default_rng((NOISE_SEED, *seed)).integers(0, 256, (image.height, image.width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)
