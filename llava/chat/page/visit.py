"""What one visitor of the page has: pictures, and a conversation with each model. Knows nothing of gradio.

ask ── pictures opened and checked ──┬─ a thread: session with model 1 ──┐
                                     └─ a thread: session with model 2 ──┴─ pieces, as they come ── the page
A model makes one answer at a time; visitors wait for it.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Lock, Thread
from time import sleep

from llava.chat.exchange import EMPTY
from llava.chat.manager_weights import ScoreRecorder
from llava.chat.media import Medium
from llava.chat.session import Session
from llava.chat.settings import Settings
from llava.chat.weights_chart import ManagerWeights
from llava.constants import FILE_LIMITS, MEBIBYTE
from llava.data.images import read_image
from llava.data.tile_lines import Cuts, tile_cuts
from llava.engine.engine import Engine
from llava.errors import DataError, LlavaError
from llava.files import file_hash
from llava.printable import one_line

MOST_PICTURES = 16  # with one question
LONGEST_NAME = 60  # characters of a file's name
STOPPED = "(stopped)"
PATIENCE = 0.5  # seconds without anything new, after which the page hears that there is nothing


@dataclass(frozen=True)
class Model:
    """A loaded model. name: on the page. lock: held by who lets it answer. stop_events: end answers not yet whole."""

    name: str
    engine: Engine
    lock: Lock = field(default_factory=Lock)
    stop_events: set[Event] = field(default_factory=set)

    def end_answers(self) -> None:
        """Of all visitors; returns when there are no more."""
        for stopped in list(self.stop_events):
            stopped.set()
        while self.stop_events:
            with self.lock:
                sleep(0.01)


def load_models(folders: Sequence[Path], device: str, dtype: str, load_4bit: bool) -> list[Model]:
    """The models of these folders, named as these, with the folders' parents where two have one name."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    names = [folder.resolve().name for folder in folders]
    if len(set(names)) < len(names):
        names = [str(folder) for folder in folders]
    return [
        Model(name, Engine.from_pretrained(folder, device=device, dtype=dtype, load_4bit=load_4bit))
        for name, folder in zip(names, folders, strict=True)
    ]


@dataclass
class Reply:
    """What a model has said to a question so far. error: why it could not."""

    text: str = ""
    error: str | None = None
    is_done: bool = False


@dataclass(frozen=True)
class Turn:
    """A question, the pictures that came with it, and a reply of each model."""

    question: str
    media: tuple[Medium, ...]
    replies: list[Reply]

    @property
    def has_failed(self) -> bool:
        """Whether no model could answer, so that no conversation has it."""
        return all(reply.error is not None for reply in self.replies)


class Seat:
    """A visitor's conversation with a model. weights: of its managers, when it answered last; None before."""

    def __init__(self, model: Model):
        self.model = model
        self.session = Session(model.engine, Settings())
        self.weights: list[ManagerWeights] | None = None

    def answer(self, turn: Turn, settings: Settings, reply: Reply, show: Callable[[str], None], stopped: Event) -> None:
        """Fills the reply. What cannot be answered leaves the conversation as it was. show: given the pieces."""
        self.session.settings, self.session.waiting = settings, list(turn.media)
        recorder = ScoreRecorder(self.model.engine.model)
        self.model.stop_events.add(stopped)
        try:
            with self.model.lock, recorder.recording():
                exchange = self.session.ask(turn.question, show, stopped)
        except LlavaError as error:
            reply.error = str(error)
        except Exception as error:  # of torch and transformers: the device is full, say. The page goes on
            reply.error = f"the model failed: {one_line(str(error)) or type(error).__name__}"
        else:
            reply.text = " ".join([exchange.answer or EMPTY, *([STOPPED] if exchange.stopped else [])])
            self.weights = recorder.weights()
        finally:
            self.session.waiting = []
            self.model.stop_events.discard(stopped)

    def cuts(self, size: tuple[int, int], several_images: bool) -> Cuts:
        """Where the model cuts a picture of (width, height) pixels."""
        pictures = self.model.engine.processor.image_processor
        return tile_cuts(pictures.tiling, pictures.size, size, several_images)


class Visit:
    """One visitor's conversation, with a seat at each model. turns: what was asked since the last reset.

    A copy is another visitor's: it has the models, and nothing of the conversation.
    """

    def __init__(self, models: Sequence[Model]):
        self.seats = [Seat(model) for model in models]
        self.turns: list[Turn] = []
        self._stopped = Event()
        self._threads: list[Thread] = []

    def __deepcopy__(self, memo: dict) -> "Visit":
        return Visit([seat.model for seat in self.seats])

    @property
    def pictures(self) -> list[Medium]:
        """All that a model has seen or is about to see."""
        return [medium for turn in self.turns if not turn.has_failed for medium in turn.media]

    def ask(self, question: str, files: Sequence[Path], settings: Settings) -> Iterator[None]:
        """Asks every model. Yields when there is something new to show, for the last time when all have answered.

        Raises LlavaError, before anything has changed, for no question, too many pictures and files that are none.
        """
        if not question.strip():
            raise LlavaError("no question: write one, with a picture or without")
        if len(files) > MOST_PICTURES:
            raise LlavaError(f"{len(files)} pictures came with the question; at most {MOST_PICTURES} are looked at")
        media = tuple(open_picture(file) for file in files)
        self._end_answers()
        self._stopped, news = Event(), Event()
        turn = Turn(question.strip(), media, [Reply() for _ in self.seats])
        self.turns.append(turn)

        def work(seat: Seat, reply: Reply, stopped: Event) -> None:
            def show(piece: str) -> None:
                reply.text += piece
                news.set()

            try:
                seat.answer(turn, settings, reply, show, stopped)
            finally:
                reply.is_done = True
                news.set()

        seated = zip(self.seats, turn.replies, strict=True)
        self._threads = [Thread(target=work, args=(*both, self._stopped), daemon=True) for both in seated]
        for thread in self._threads:
            thread.start()
        while not all(reply.is_done for reply in turn.replies):
            yield
            news.wait(PATIENCE)
            news.clear()
        yield

    def stop(self) -> None:
        """Ends the answers that are being written; what has come of them stays."""
        self._stopped.set()

    def reset(self) -> None:
        """Forgets the conversation and its pictures."""
        self._end_answers()
        self.turns = []
        for seat in self.seats:
            seat.session.reset()
            seat.weights = None

    def _end_answers(self) -> None:
        self.stop()
        for thread in self._threads:
            thread.join()


def open_picture(file: Path) -> Medium:
    """The picture of a file that was uploaded. Raises DataError with one line that names the file."""
    name, size, limit = one_line(file.name, LONGEST_NAME), file.stat().st_size, FILE_LIMITS["image"]
    if size > limit:
        raise DataError(f"image {name} has {size / MEBIBYTE:.1f} MiB; at most {limit / MEBIBYTE:g} are read")
    content, notes = read_image(file, name)
    return Medium("image", name, file, file_hash(file), content, f"{content.width}x{content.height}", tuple(notes))
