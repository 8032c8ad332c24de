"""How answers and notes are shown: Markdown on a terminal, plain text elsewhere."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

from markdown_it import MarkdownIt
from markdown_it.token import Token
from PIL import Image
from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.markdown import Markdown
from rich.segment import Segment

from llava.chat.preview import can_preview, preview
from llava.chat.quiet import quiet_terminal
from llava.chat.weights_chart import ManagerWeights, chart

FRAMES_PER_SECOND = 12
SPINNER, SPINS_PER_SECOND = "|/-\\", 8
# Tabs and newlines remain; what could move the cursor or change colors does not.
_CONTROL = {code: None for code in [*range(32), *range(127, 160)] if chr(code) not in "\n\t"}
_PARSER = MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"])


class Display:
    """Answers go to stdout, all else to stderr."""

    def __init__(self, preview: bool = True):
        self.answers = Console(highlight=False, emoji=False)
        self.notes = Console(stderr=True, highlight=False, emoji=False, markup=False, soft_wrap=True)
        self.previews = preview

    @property
    def is_watched(self) -> bool:
        """Whether somebody looks at answers or notes, in a terminal."""
        return self.answers.file.isatty() or self.notes.file.isatty()

    def note(self, text: str) -> None:
        """A line about what happened."""
        print(text.translate(_CONTROL), file=sys.stderr, flush=True)

    def error(self, text: str) -> None:
        """Prints one line that begins with `error:`."""
        self.note(f"error: {' '.join(text.split())}")

    @contextmanager
    def working(self, text: str = "") -> Iterator[Callable[[], None]]:
        """On a terminal, shows that something goes on, until the block or the function that it gives ends it.

        Keys that are typed meanwhile are not echoed. A terminal that cannot draw gets the text as a line.
        """
        if not self.notes.file.isatty():
            yield lambda: None
            return
        with quiet_terminal():
            if self.notes.is_dumb_terminal:
                if text:
                    self.note(text)
                yield lambda: None
                return
            spinner = Live(_Spinner(text), console=self.notes, transient=True, refresh_per_second=SPINS_PER_SECOND)
            with spinner:
                yield spinner.stop

    @contextmanager
    def answer(self, spin: bool = True) -> Iterator[Callable[[str], None]]:
        """Gives a function that shows the pieces of an answer as they come. spin: a spinner is shown until the first.

        The answer ends with a line's end; one that breaks off before its first piece leaves nothing.
        """
        rendered = self.answers.file.isatty() and not self.answers.is_dumb_terminal
        shown = MarkdownStream(self.answers) if rendered else PlainStream(self.answers)
        with quiet_terminal():
            try:
                with self.working() if spin else nullcontext(lambda: None) as stop:

                    def show(piece: str) -> None:
                        stop()
                        shown.add(piece)

                    yield show
            except BaseException:
                if shown.begun:
                    shown.end()
                raise
            shown.end()

    def show_text(self, text: str) -> None:
        """A whole answer at once."""
        with self.answer(spin=False) as show:
            show(text)

    def show_weights(self, weights: list[ManagerWeights]) -> None:
        """The chart of the managers' weights."""
        self.note(chart(weights, self.notes.width, plain=not self.notes.encoding.startswith("utf")))

    def show_image(self, image: Image.Image) -> None:
        """A small picture of it, where the terminal can."""
        if self.previews and can_preview(self.notes):
            self.notes.print(preview(image, self.notes), end="")


class PlainStream:
    """Pieces of text as they are; without control characters where a terminal would obey them."""

    def __init__(self, console: Console):
        self.console = console
        self.begun = False

    def add(self, piece: str) -> None:
        """Shows one more piece of the answer."""
        self.begun = True
        text = piece.translate(_CONTROL) if self.console.file.isatty() else piece
        print(text, end="", file=self.console.file, flush=True)

    def end(self) -> None:
        """Ends the answer's last line."""
        print(file=self.console.file, flush=True)


class MarkdownStream:
    """Markdown, rendered while it comes.

    A paragraph, list, table or code block that is complete is printed for good and scrolls away like other text. The
    last one, which may still change, is drawn again when pieces come; of one that is higher than the screen the end is
    shown until it is complete. So nothing above it is ever drawn twice.
    """

    def __init__(self, console: Console):
        self.console = console
        self.text = ""  # of the last block and what follows it
        self.drawn = 0.0
        self.gap = False  # whether there is something above, from which a blank line parts what comes
        self.live = Live(console=console, auto_refresh=False, transient=True, vertical_overflow="crop")

    @property
    def begun(self) -> bool:
        """Whether something of the answer is shown."""
        return self.live.is_started

    def add(self, piece: str) -> None:
        """Shows one more piece of the answer."""
        self.live.start()
        self.text += piece.translate(_CONTROL)
        done = begin_of_last_block(self.text)
        if done:
            self._print(self.text[:done])
            self.text = self.text[done:]
        elif time.monotonic() - self.drawn < 1 / FRAMES_PER_SECOND:
            return
        self.live.update(_Tail(render(self.text), self.gap), refresh=True)
        self.drawn = time.monotonic()

    def end(self) -> None:
        """Leaves the answer as it stands."""
        if self.begun:
            self.live.update("", refresh=True)
            self.live.stop()
        self._print(self.text)
        if not self.gap:
            self.console.print()

    def _print(self, text: str) -> None:
        """Above what is live."""
        if text.strip():
            self.console.print(*[""] * self.gap, render(text), sep="\n")
            self.gap = True


def render(text: str) -> Markdown:
    """Markdown that loses nothing of the text: HTML is text, and a line's end ends a line."""
    markdown = Markdown("", hyperlinks=False)  # or a link would show no address
    markdown.parsed = _PARSER.parse(text)
    for token in markdown.parsed:
        for child in token.children or []:
            if child.type == "softbreak":
                child.type = "hardbreak"
            elif child.type == "image":  # there is no picture to show, only its words
                child.type, child.content, child.children = "text", f"![{child.content}]({child.attrs['src']})", None
    return markdown


def begin_of_last_block(text: str) -> int:
    """Where, in characters, the last block of a Markdown text begins; 0 when it is the only one.

    A line that is not complete could still belong to the block before it, or turn it into a heading or a table.
    """
    blocks = [token for token in _PARSER.parse(text) if _is_block(token)]
    if len(blocks) < 2 or "\n" not in text:
        return 0
    lines, first = text.split("\n"), blocks[-1].map[0]
    return sum(len(line) + 1 for line in lines[:first]) if first < len(lines) - 1 else 0


def _is_block(token: Token) -> bool:
    return token.level == 0 and token.nesting >= 0 and token.map is not None


class _Tail:
    """The last lines, as many as the screen has, below a blank one if there is a gap."""

    def __init__(self, content: Markdown, gap: bool):
        self.content = content
        self.gap = gap

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = console.render_lines(self.content, options.update(height=None), pad=False)
        for line in [[]] * self.gap + lines[-max(console.height - 2, 1) :]:
            yield from line
            yield Segment.line()


class _Spinner:
    """A stroke that turns, what goes on, and the seconds since it began."""

    def __init__(self, text: str):
        self.text = text
        self.begin = time.monotonic()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        seconds = time.monotonic() - self.begin
        stroke = SPINNER[int(seconds * SPINS_PER_SECOND) % len(SPINNER)]
        yield Segment(f"{stroke} {self.text} {seconds:.0f}s"[: console.width - 1].replace("  ", " "))
