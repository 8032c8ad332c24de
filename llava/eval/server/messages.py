"""A dialogue as an OpenAI-compatible server takes it: the same words, and the same pixels as PNG."""

import base64
import re
from io import BytesIO

from PIL import Image

from llava.constants import IMAGE_TOKEN
from llava.data.conversation import as_written
from llava.data.placeholders import BEHIND, BETWEEN, with_places
from llava.data.schema import Dialogue
from llava.errors import LlavaError

ROLES = {"human": "user", "gpt": "assistant", "system": "system"}
_IN_FRONT = re.compile(f"{IMAGE_TOKEN}(?:{BETWEEN}{IMAGE_TOKEN})*{BEHIND}")


def messages_of(dialogue: Dialogue) -> list[dict]:
    """One message a turn.

    Images in front of a text are parts in front of it, as everyone's templates have them. Raises LlavaError for videos,
    for which the protocol has no place, and for more or less places than images.
    """
    if dialogue.videos:
        raise LlavaError("it shows a video, which no OpenAI-compatible server takes; --engine transformers does")
    turns, images = with_places(dialogue).turns, list(map(data_url, dialogue.images))
    places = sum(turn.text.count(IMAGE_TOKEN) for turn in turns)
    if places != len(images):
        raise LlavaError(f"{places} places for images, but {len(images)} images")
    urls = iter(images)
    messages = []
    for turn in turns:
        parts = [_image(next(urls)) if piece is None else _text(piece) for piece in _pieces(turn.text)]
        text_alone = IMAGE_TOKEN not in turn.text
        messages.append({"role": ROLES[turn.role], "content": as_written(turn.text) if text_alone else parts})
    return messages


def _pieces(text: str) -> list[str | None]:
    """Texts as they are, and None where an image stands."""
    opening = _IN_FRONT.match(text)
    if opening:
        behind = text[opening.end() :]
        return [*[None] * opening.group().count(IMAGE_TOKEN), *(_split(behind) if behind else [])]
    pieces = _split(text)
    return ["", *pieces] if pieces[0] is None else pieces  # no line break follows the image, which a text before says


def _split(text: str) -> list[str | None]:
    pieces: list[str | None] = []
    for number, part in enumerate(text.split(IMAGE_TOKEN)):
        pieces += [None] * (number > 0) + [part] * (part != "")
    return pieces


def _text(text: str) -> dict:
    return {"type": "text", "text": as_written(text)}


def _image(url: str) -> dict:
    return {"type": "image_url", "image_url": {"url": url}}


def data_url(image: Image.Image) -> str:
    """The pixels of an RGB image and nothing else: no profile, no colour that counts as transparent."""
    plain, buffer = Image.new("RGB", image.size), BytesIO()
    plain.paste(image)
    plain.save(buffer, "PNG", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
