"""A conversation with a model: its turns, what waits to be shown, and how answers are made."""

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict
from random import Random
from threading import Event
from typing import TYPE_CHECKING

from llava.chat.exchange import Exchange, Timing, as_text, checked_system, placed
from llava.chat.media import Medium
from llava.chat.settings import Settings
from llava.data.placeholders import PLACEHOLDERS
from llava.data.schema import Dialogue, Turn
from llava.engine.usage import Usage
from llava.errors import LlavaError

if TYPE_CHECKING:  # it needs torch, which no early error should wait for
    from llava.engine.engine import Engine


class Session:
    """The conversation so far, and all that an answer depends on.

    exchanges: the turns. waiting: images and videos that go with the next question. system: the system message, None
    for the model's own. record: called with each change of the conversation, as llava/chat/log.py stores it.
    """

    def __init__(self, engine: "Engine", settings: Settings, system: str | None = None):
        self.engine = engine
        self.settings = settings
        self.exchanges: list[Exchange] = []
        self.waiting: list[Medium] = []
        self.record: Callable[[str, object], None] = lambda event, value=None: None
        self._drawn = 0  # answers since the seed was set or the conversation began
        self._kept = engine.new_cache()
        self.system = checked_system(system)

    def ask(self, question: str, show: Callable[[str], None], stopped: Event | None = None) -> Exchange:
        """Answers, giving each piece to `show` as it comes; both are remembered.

        What waits goes in front of the question, or where it says `<image>` and `<video>`.
        KeyboardInterrupt ends an answer; what has come of it is remembered before the interrupt goes on to the caller.
        After any other error, and when nothing has come yet, the conversation is as it was.
        stopped: when another thread sets it the answer ends, as one that is interrupted, and is returned.
        Raises LlavaError for a question that is no text, or has more or fewer places than there are images or videos.
        """
        pending = Exchange(as_text(question, "the question"), tuple(self.waiting))
        return self._answer(self.exchanges, pending, show, "answer", Event() if stopped is None else stopped)

    def retry(self, show: Callable[[str], None]) -> Exchange:
        """Answers the last question again, in place of the last answer; errors as in ask."""
        last, waiting = self._last(), self.waiting
        try:
            return self._answer(self.exchanges[:-1], Exchange(last.question, last.media), show, "retry", Event())
        finally:
            self.waiting = waiting

    def undo(self) -> Exchange:
        """Takes back the last question, what was shown with it, and its answer."""
        last = self._last()
        self.exchanges = self.exchanges[:-1]
        self.record("undo")
        return last

    def reset(self) -> None:
        """Forgets the turns and what waits; system message and settings stay."""
        self.exchanges, self.waiting, self._drawn = [], [], 0
        self._kept.clear()
        self.record("reset")

    def set_system(self, text: str | None) -> None:
        """Another system message, for the whole conversation; None for the model's own."""
        self.system = checked_system(text)
        self.record("system", self.system)

    def set_settings(self, settings: Settings) -> None:
        """Other settings, for the answers to come; another seed begins its draws anew."""
        if settings.seed != self.settings.seed:
            self._drawn = 0
        self.settings = settings
        self.record("set", asdict(settings))

    def restore(self, exchanges: Sequence[Exchange], system: str | None, settings: Settings) -> None:
        """Another conversation in place of this one; what waits stays."""
        self._drawn = len(exchanges)
        self.exchanges, self.system, self.settings = list(exchanges), checked_system(system), settings
        self.record("reset")
        self.record("system", system)
        self.record("set", asdict(settings))
        for exchange in exchanges:
            self.record("answer", exchange)

    @property
    def usage(self) -> Usage | None:
        """Tokens of the last answer that was generated."""
        return self._kept.usage

    def count_next(self) -> int:
        """Tokens of the prompt of the next question, without its text."""
        return self.engine.count_tokens(self._dialogue([*self.exchanges, Exchange("", tuple(self.waiting))]))

    def _last(self) -> Exchange:
        if not self.exchanges:
            raise LlavaError("the conversation has no turn yet")
        return self.exchanges[-1]

    def _answer(
        self,
        before: list[Exchange],
        pending: Exchange,
        show: Callable[[str], None],
        event: str,
        stopped: Event,
    ) -> Exchange:
        dialogue = self._dialogue([*before, pending])
        pieces: list[str] = []
        begin = time.perf_counter()
        first, interrupt, is_whole = None, None, False
        try:
            options = {**self._options(), "kept": self._kept, "stopped": stopped}
            with closing(self.engine.stream(dialogue, **options)) as stream:
                for piece in stream:
                    first = first or time.perf_counter()
                    if piece:
                        pieces.append(piece)
                        show(piece)
                is_whole = not stopped.is_set()
        except KeyboardInterrupt as caught:
            if not pieces:
                raise
            interrupt = caught
        if interrupt is None and not is_whole and not pieces:
            raise LlavaError("stopped before an answer came")
        end = time.perf_counter()
        answer = "".join(pieces)
        for placeholder in PLACEHOLDERS.values():  # that a model writes must not move the images of later turns
            answer = answer.replace(placeholder, "")
        timing = Timing((first or end) - begin, end - begin)
        exchange = Exchange(pending.question, pending.media, answer.strip(), not is_whole, self._kept.usage, timing)
        self.exchanges, self.waiting = [*before, exchange], []
        self.record(event, exchange)
        if interrupt is not None:
            raise interrupt
        return exchange

    def _options(self) -> dict:
        """The settings, with a seed of this answer's own: another answer to the same question is another draw."""
        options = asdict(self.settings)
        if self.settings.seed is not None:
            options["seed"] = Random(f"{self.settings.seed} {self._drawn}").getrandbits(63)
        self._drawn += 1
        return options

    def _dialogue(self, exchanges: list[Exchange]) -> Dialogue:
        """The turns, up to the last exchange's question."""
        turns = [Turn("system", self.system)] if self.system is not None else []
        for exchange in exchanges:
            turns += [Turn("human", placed(exchange)), Turn("gpt", exchange.answer)]
        images = [medium.content for exchange in exchanges for medium in exchange.of_kind("image")]
        videos = [medium.content for exchange in exchanges for medium in exchange.of_kind("video")]
        return Dialogue(turns[:-1], images, videos)
