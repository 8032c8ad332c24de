"""A record of LLaVA's JSON, checked once and typed from then on."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from llava.constants import IMAGE_TOKEN, VIDEO_TOKEN
from llava.errors import DataError
from llava.printable import brief, one_line, visible

ROLES = {"human": "human", "user": "human", "gpt": "gpt", "assistant": "gpt", "model": "gpt", "system": "system"}
OnBadSample = Literal["error", "skip"]  # what a sample that cannot be used does
OutsidePaths = Literal["refuse", "links", "any"]  # which paths may lead out of the image folder, see ImageFolder
# How an image becomes the square that a two-tower model sees, see llava/data/pairs/transforms.py.
TransformName = Literal["center", "squash", "randaug", "randaug_no_flip", "randaug_color", "randaug_color_no_flip"]
LONGEST_PATH = 4096  # characters: more are no path on Linux


@dataclass(frozen=True)
class Turn:
    """One turn. role: `human`, `gpt`, `system`, or another name that is passed through as it is."""

    role: str
    text: str


@dataclass(frozen=True)
class Sample:
    """One training sample.

    id: the record's; `origin` where it has none. images, videos: paths relative to the image folder, in the order of
    their placeholders. origin: the file and row it came from. fault: why the record cannot be used; such a sample has
    no turns.
    """

    id: str
    turns: tuple[Turn, ...]
    images: tuple[str, ...]
    origin: str
    videos: tuple[str, ...] = ()
    fault: str | None = None

    def __str__(self) -> str:
        return f"sample {brief(self.id)} ({one_line(self.origin)})"


class Dialogue(NamedTuple):
    """A conversation that waits for the model's next turn.

    turns: ends with a human turn; a leading system turn replaces the default system message. images (PIL) and videos
    (each a sequence of frames): in the order of their places, `<image>` and `<video>` in the turns' texts.
    """

    turns: Sequence[Turn]
    images: Sequence[Any] = ()
    videos: Sequence[Any] = ()


def parse_sample(record: dict, origin: str) -> Sample:
    """As sample_of; raises DataError, with `origin` in the message, for a record that cannot be used."""
    sample = sample_of(record, origin)
    if sample.fault is not None:
        raise DataError(f"{one_line(origin)}: {sample.fault}")
    return sample


def sample_of(record: Any, origin: str) -> Sample:
    """`{id?, image?, video?, conversations: [{from: human|gpt, value}]}`, or role/content in place of from/value.

    id: a text or a finite number; null, NaN and an empty text are none. image, video: a path or a list of paths; null
    and an empty list are none. from: `human` or `user`, `gpt`, `assistant` or `model`, `system`, in any case; another
    one-line name is passed through. LLaVA's records mark a video's place with `<image>`; in a record that has videos
    and no image it is read as `<video>`. Texts are Unicode: a lone surrogate is a fault. Keys that are not named here
    are not read. Any other record gives a sample without turns that says in `fault` what is wrong.
    """
    name = origin = visible(origin)
    try:
        if not isinstance(record, dict):
            raise DataError(f"a record must be an object, found {type(record).__name__}")
        name = _parse_id(record.get("id")) or origin
        check_text(name, "the id")
        images, videos = _parse_paths(record, "image"), _parse_paths(record, "video")
        turns = _parse_turns(record)
    except DataError as error:
        return Sample(visible(name), (), (), origin, fault=str(error))
    if videos and not images:
        turns = tuple(Turn(turn.role, turn.text.replace(IMAGE_TOKEN, VIDEO_TOKEN)) for turn in turns)
    return Sample(name, turns, images, origin, videos)


def check_text(text: str, what: str) -> None:
    """Raises DataError for a lone surrogate, as is left where an emoji was cut in two: no UTF-8 can hold it."""
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = ascii(text[error.start])[1:-1]
        around = one_line(text[max(error.start - 20, 0) : error.start + 20])
        raise DataError(
            f"{what} holds half a character, {half}, as character {error.start + 1} of {len(text)}: '{around}'"
        ) from None


def _parse_id(name: Any) -> str | None:
    if isinstance(name, (list, dict, bool)) or name in (float("inf"), float("-inf")):
        raise DataError(f"'id' must be a text or a number, found {brief(name)}")
    return None if name is None or name != name else str(name)  # NaN is what pandas writes where there is none


def _parse_paths(record: dict, key: str) -> tuple[str, ...]:
    if record.get(f"{key}s"):
        raise DataError(f"'{key}s' is not supported; give a path or a list of paths as {key!r}")
    paths = record.get(key)
    paths = [] if paths is None else [paths] if isinstance(paths, str) else paths
    if not isinstance(paths, list) or not all(isinstance(path, str) and path for path in paths):
        raise DataError(f"{key!r} must be a path or a list of paths, found {brief(record[key])}")
    for path in paths:
        check_text(path, f"the path of {key!r}")
        if len(path) > LONGEST_PATH or "\0" in path:
            problem = "a NUL character in" if "\0" in path else f"{len(path):,} characters, the file itself perhaps:"
            raise DataError(f"{key!r} must be a path or a list of paths, found {problem} {brief(path)}")
    return tuple(paths)


def _parse_turns(record: dict) -> tuple[Turn, ...]:
    conversation = record.get("conversations")
    if not isinstance(conversation, list) or not conversation:
        raise DataError(f"'conversations' must be a list of turns, found {brief(conversation)}")
    return tuple(_parse_turn(turn, f"turn {number}") for number, turn in enumerate(conversation, start=1))


def _parse_turn(turn: Any, where: str) -> Turn:
    for role_key, text_key in (("from", "value"), ("role", "content")):
        if isinstance(turn, dict) and isinstance(turn.get(role_key), str) and isinstance(turn.get(text_key), str):
            role: str = turn[role_key]
            text: str = turn[text_key]
            check_text(role, f"the role of {where}")
            check_text(text, f"the text of {where}")
            if not role.strip() or not role.isprintable():
                raise DataError(f"{where}: a role is a name on one line, found {brief(role)}")
            return Turn(ROLES.get(role.strip().lower(), role), text)
    raise DataError(f"{where}: a turn needs the texts 'from' and 'value', found {brief(turn)}")
