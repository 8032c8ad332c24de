"""From the harness's requests to ours: chat messages to a dialogue, generation kwargs to settings, images to noise."""

from dataclasses import dataclass

import numpy as np
from loguru import logger
from PIL import Image

from llava.chat.engine import join_images
from llava.constants import IMAGE_TOKEN
from llava.data.images import open_image
from llava.data.schema import Dialogue, Turn
from llava.errors import LlavaError

DEFAULT_MAX_NEW_TOKENS = 1024  # for tasks that name no limit, as lmms-eval's LLaVA-OneVision model has it
HARNESS_DEFAULT_STOP = "\n\n"  # filled in by the harness when a task names no `until`; it would cut paragraphs
ROLES = {"user": "human", "assistant": "gpt", "system": "system"}
NOISE_SEED = 20250101  # keeps the noise apart from other streams drawn from small seeds
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
    known = {"max_new_tokens", "temperature", "do_sample", "top_p", "num_beams", "until"}
    for key in sorted(set(gen_kwargs) - known - IGNORED):
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


def dialogue_from(messages: list) -> Dialogue:
    """Turns the harness's `ChatMessage`s into a dialogue.

    Images that open a message are joined in front of its text, as in training; later ones stand where the task put
    them. A text that writes `<image>` itself says where the images go. Raises LlavaError for video and audio.
    """
    turns, images = [], []
    for message in messages:
        for content in message.content:
            if content.type not in ("text", "image"):
                raise LlavaError(f"this model reads text and images, not {content.type}")
            if content.type == "image":
                is_path = isinstance(content.url, str)
                images.append(open_image(content.url) if is_path else content.url.convert("RGB"))
        turns.append(Turn(ROLES[message.role], _text_of(message.content)))
    return Dialogue(turns, images)


def _text_of(contents: list) -> str:
    if any(content.type == "text" and IMAGE_TOKEN in content.text for content in contents):
        return "".join(content.text for content in contents if content.type == "text")
    kinds = [content.type for content in contents]
    leading = kinds.index("text") if "text" in kinds else len(kinds)
    text = "".join(IMAGE_TOKEN if content.type == "image" else content.text for content in contents[leading:])
    return join_images(text, leading)


def noise_like(image: Image.Image, *seed: int) -> Image.Image:
    """An RGB image of the same size whose pixels are drawn uniformly from 0..255; the same for the same seed."""
    pixels = np.random.default_rng((NOISE_SEED, *seed)).integers(0, 256, (image.height, image.width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)
