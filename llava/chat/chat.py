"""What a line from the user does: a question with what it shows, or a command of llava/chat/commands.py."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from llava.chat.display import Display
from llava.chat.exchange import EMPTY, Exchange
from llava.chat.inline import split_media
from llava.chat.log import Talk, load
from llava.chat.media import MediaReader, Medium
from llava.chat.session import Session
from llava.chat.weights_chart import ManagerWeights


class Chat:
    """A session, and how it is shown.

    model: its name in logs. show_managers, show_stats: after each answer, print a chart of the managers' weights, and
    its tokens per second.
    leaving: set when the user wants to go. files: logs that were read or written, and may be written again.
    """

    def __init__(
        self,
        session: Session,
        media: MediaReader,
        display: Display,
        model: str,
        show_managers: bool = False,
        show_stats: bool = False,
    ):
        self.session = session
        self.media = media
        self.display = display
        self.model = model
        self.show_stats = show_stats
        self.leaving = False
        self.files: set[Path] = set()
        self._recorder = None
        if show_managers:
            from llava.chat.manager_weights import ScoreRecorder

            self._recorder = ScoreRecorder(session.engine.model)

    def say(self, line: str) -> None:
        """Opens the images and videos that the line names and asks the rest; without any rest they wait.

        Raises LlavaError; whatever cannot be opened stops the whole line, and the line can be given again.
        """
        named = split_media(line)
        named.check()
        question = named.question
        opened = [self.media.open(source, kind) for kind, source in named.media]
        for note in named.notes:
            self.display.note(note)
        waiting = list(self.session.waiting)
        self.show(opened, "this question" if question else "the next question")
        if not question:
            return
        try:
            self.ask(question)
        except BaseException:
            if self.session.waiting:  # there is no answer; else they belong to it
                self.session.waiting = waiting
            raise

    def show(self, media: list[Medium], when: str = "the next question") -> None:
        """Puts opened images and videos before the next question."""
        self.session.waiting += media
        for medium in media:
            self.display.note(f"{medium}, goes with {when}")
            self.display.show_image(medium.content if medium.kind == "image" else medium.content[0])

    def ask(self, question: str) -> None:
        """Asks, and prints the answer as it comes."""
        self._answer(lambda show: self.session.ask(question, show))

    def retry(self) -> None:
        """Asks the last question again, with a note where the answer will be the same."""
        if self.session.exchanges and self.session.settings.temperature == 0:
            self.display.note("temperature is 0, the answer will be the same; /set temperature=0.7 makes it vary")
        self._answer(self.session.retry)

    def answer_silently(self, question: str) -> None:
        """Asks without showing anything."""
        with self._recording():
            self.session.ask(question, lambda piece: None)

    @property
    def shows_managers(self) -> bool:
        """Whether the managers' weights are shown with each answer."""
        return self._recorder is not None

    def manager_weights(self) -> list[ManagerWeights]:
        """What the managers took from each vision layer; only where they are shown."""
        return self._recorder.weights()

    def _answer(self, answered: Callable[[Callable[[str], None]], Exchange]) -> None:
        with self._recording(), self.display.answer() as show:
            exchange = answered(show)
        if not exchange.answer and self.display.is_watched:
            self.display.note(EMPTY)
        if self.show_stats:
            self.display.note(stats(exchange))
        if self.shows_managers:
            self.display.show_weights(self.manager_weights())

    def _recording(self) -> AbstractContextManager:
        return self._recorder.recording() if self._recorder else nullcontext()

    def load(self, path: Path) -> None:
        """Goes on with a conversation from a file, in place of this one, which is untouched when the file is faulty."""
        talk = load(path, self.media)
        self.session.restore(talk.exchanges, talk.system, talk.settings)
        self.files.add(path.absolute())
        self.replay(talk)

    def replay(self, talk: Talk) -> None:
        """Shows a conversation that was read."""
        for note in talk.notes:
            self.display.note(note)
        if talk.model != self.model:
            self.display.note(f"this was a conversation with {talk.model}")
        for exchange in talk.exchanges:
            for medium in exchange.media:
                self.display.note(str(medium))
            self.display.note(f"> {exchange.question}")
            self.display.show_text(exchange.answer)


def stats(exchange: Exchange) -> str:
    """Tokens and time of an answer, in a line."""
    usage, timing, rate = exchange.usage, exchange.timing, exchange.tokens_per_second
    speed = "" if rate is None else f", {rate:.1f} a second"
    return (
        f"{usage.answer} token{'' if usage.answer == 1 else 's'} in {timing.writing:.2f} s{speed}, "
        f"after {timing.first_token:.2f} s for the prompt: {usage.prefilled} of its {usage.prompt} tokens were computed"
    )
