"""A record of LLaVA's JSON, checked once and typed from then on."""

from dataclasses import dataclass

from llava.errors import DataError

_ROLES = {"human": "human", "user": "human", "gpt": "gpt", "assistant": "gpt"}


@dataclass(frozen=True)
class Turn:
    """One turn. role: `human`, `gpt`, `system`, or another name that is passed through as it is."""

    role: str
    text: str


@dataclass(frozen=True)
class Sample:
    """One training sample. images: paths relative to the image folder. origin: the file and row it came from."""

    id: str
    turns: tuple[Turn, ...]
    images: tuple[str, ...]
    origin: str

    def __str__(self) -> str:
        return f"sample {self.id!r} ({self.origin})"


def parse_sample(record: dict, origin: str) -> Sample:
    """`{id?, image?: str | [str], conversations: [{from: human|gpt, value}]}`, or role/content in place of from/value.

    Raises DataError, with `origin` in the message, for anything else.
    """
    if not isinstance(record, dict):
        raise DataError(f"{origin}: a record must be an object, found {type(record).__name__}")
    images = record.get("image")
    images = [] if images is None else [images] if isinstance(images, str) else images
    if not isinstance(images, list) or not all(isinstance(image, str) and image for image in images):
        raise DataError(f"{origin}: 'image' must be a path or a list of paths, found {record['image']!r}")
    for key in ("video", "images", "videos"):
        if record.get(key) is not None:
            raise DataError(f"{origin}: {key!r} is not supported; images are given as 'image'")
    conversation = record.get("conversations")
    if not isinstance(conversation, list) or not conversation:
        raise DataError(f"{origin}: 'conversations' must be a list of turns, found {conversation!r}")
    turns = tuple(_parse_turn(turn, f"{origin} turn {number}") for number, turn in enumerate(conversation, start=1))
    name = record.get("id")
    return Sample(str(name) if name is not None else origin, turns, tuple(images), origin)


def _parse_turn(turn, origin: str) -> Turn:
    for role_key, text_key in (("from", "value"), ("role", "content")):
        if isinstance(turn, dict) and isinstance(turn.get(role_key), str) and isinstance(turn.get(text_key), str):
            role = turn[role_key]
            return Turn(_ROLES.get(role, role), turn[text_key])
    raise DataError(f"{origin}: a turn needs the texts 'from' and 'value', found {turn!r}"[:300])
