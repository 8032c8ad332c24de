"""A question with what is shown with it, and its answer; what such texts may hold. Needs no model."""

from dataclasses import dataclass

from llava.chat.media import Medium
from llava.data.placeholders import PLACEHOLDERS, place_in_front
from llava.engine.usage import Usage
from llava.errors import LlavaError

EMPTY = "(the model gave an empty answer)"


@dataclass(frozen=True)
class Timing:
    """Seconds from the question to the first token of the answer, and to its end."""

    first_token: float
    total: float

    @property
    def writing(self) -> float:
        """Seconds from the first token to the end."""
        return self.total - self.first_token


@dataclass(frozen=True)
class Exchange:
    """A question, what was shown with it, and the answer. stopped: it was cut short. usage, timing: of the answer."""

    question: str
    media: tuple[Medium, ...]
    answer: str = ""
    stopped: bool = False
    usage: Usage | None = None
    timing: Timing | None = None

    @property
    def tokens_per_second(self) -> float | None:
        """How fast the answer came, from its first token on; None where that is not known."""
        if self.usage is None or self.timing is None or self.usage.answer < 2 or not self.timing.writing:
            return None
        return (self.usage.answer - 1) / self.timing.writing

    def of_kind(self, kind: str) -> list[Medium]:
        """What was shown of a kind, `image` or `video`."""
        return [medium for medium in self.media if medium.kind == kind]


def placed(exchange: Exchange) -> str:
    """The question with a place for each image and video: where it says so itself, else in front, as in training.

    Raises LlavaError when it says so more or less often than there are.
    """
    in_front = []
    for kind, placeholder in PLACEHOLDERS.items():
        places, count = exchange.question.count(placeholder), len(exchange.of_kind(kind))
        if places not in (0, count):
            raise LlavaError(f"found {places} {placeholder} in the question but {count} new {kind}s")
        in_front += [placeholder] * (count - places)
    return place_in_front(in_front, exchange.question)


def checked_system(text: str | None) -> str | None:
    """The message; LlavaError for one that is no text, or has places for images or videos, which stand in turns."""
    if text is None:
        return None
    for placeholder in PLACEHOLDERS.values():
        if placeholder in text:
            raise LlavaError(f"the system message must not hold {placeholder}")
    return as_text(text, "the system message")


def as_text(text: str, name: str) -> str:
    """What Python made of bytes that the locale cannot read, read as UTF-8. LlavaError, with `name`, for others."""
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8")
    except UnicodeError:
        raise LlavaError(f"{name} is no text: it is not UTF-8") from None
