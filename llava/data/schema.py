"""A record of LLaVA's JSON, checked once and typed from then on."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from llava.constants import IMAGE_TOKEN, VIDEO_TOKEN
from llava.errors import DataError

_ROLES = {"human": "human", "user": "human", "gpt": "gpt", "assistant": "gpt"}


@dataclass(frozen=True)
class Turn:
    """One turn. role: `human`, `gpt`, `system`, or another name that is passed through as it is."""

    role: str
    text: str


@dataclass(frozen=True)
class Sample:
    """One training sample.

    images, videos: paths relative to the image folder, in the order of their placeholders. origin: the file and row it
    came from.
    """

    id: str
    turns: tuple[Turn, ...]
    images: tuple[str, ...]
    origin: str
    videos: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"sample {self.id!r} ({self.origin})"


class Dialogue(NamedTuple):
    """A conversation that waits for the model's next turn.

    turns: ends with a human turn; a leading system turn replaces the default system message. images (PIL) and videos
    (each a sequence of frames): in the order of their places, `<image>` and `<video>` in the turns' texts.
    """

    turns: Sequence[Turn]
    images: Sequence[Any] = ()
    videos: Sequence[Any] = ()


def parse_sample(record: dict, origin: str) -> Sample:
    """`{id?, image?, video?, conversations: [{from: human|gpt, value}]}`, or role/content in place of from/value.

    image, video: a path or a list of paths. LLaVA's records mark a video's place with `<image>`; in a record that has
    videos and no image it is read as `<video>`. Raises DataError, with `origin` in the message, for anything else.
    """
    if not isinstance(record, dict):
        raise DataError(f"{origin}: a record must be an object, found {type(record).__name__}")
    images, videos = _parse_paths(record, "image", origin), _parse_paths(record, "video", origin)
    for key, instead in (("images", "image"), ("videos", "video")):
        if record.get(key) is not None:
            raise DataError(f"{origin}: {key!r} is not supported; give a path or a list of paths as {instead!r}")
    conversation = record.get("conversations")
    if not isinstance(conversation, list) or not conversation:
        raise DataError(f"{origin}: 'conversations' must be a list of turns, found {conversation!r}")
    turns = tuple(_parse_turn(turn, f"{origin} turn {number}") for number, turn in enumerate(conversation, start=1))
    if videos and not images:
        turns = tuple(Turn(turn.role, turn.text.replace(IMAGE_TOKEN, VIDEO_TOKEN)) for turn in turns)
    name = record.get("id")
    return Sample(str(name) if name is not None else origin, turns, images, origin, videos)


def _parse_paths(record: dict, key: str, origin: str) -> tuple[str, ...]:
    paths = record.get(key)
    paths = [] if paths is None else [paths] if isinstance(paths, str) else paths
    if not isinstance(paths, list) or not all(isinstance(path, str) and path for path in paths):
        raise DataError(f"{origin}: {key!r} must be a path or a list of paths, found {record[key]!r}")
    return tuple(paths)


def _parse_turn(turn, origin: str) -> Turn:
    for role_key, text_key in (("from", "value"), ("role", "content")):
        if isinstance(turn, dict) and isinstance(turn.get(role_key), str) and isinstance(turn.get(text_key), str):
            role = turn[role_key]
            return Turn(_ROLES.get(role, role), turn[text_key])
    raise DataError(f"{origin}: a turn needs the texts 'from' and 'value', found {turn!r}"[:300])
