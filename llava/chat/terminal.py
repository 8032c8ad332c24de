"""The conversation in a terminal: lines with editing, history and completion, one after the other."""

import os
from collections.abc import Iterable
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.output import create_output
from prompt_toolkit.shortcuts import CompleteStyle
from prompt_toolkit.utils import is_dumb_terminal

from llava.chat.chat import Chat
from llava.chat.commands import COMMANDS, obey
from llava.chat.media import SUFFIXES
from llava.chat.settings import SETTINGS
from llava.errors import LlavaError


def converse(chat: Chat) -> None:
    """Reads questions and commands until /exit or Ctrl-D. An error is a line, and the conversation goes on."""
    prompt = PromptSession(
        "> ",
        history=open_history(chat),
        completer=CommandCompleter(),
        complete_style=CompleteStyle.READLINE_LIKE,
        complete_while_typing=False,
        key_bindings=_bindings(),
        # Where stdout is a file, prompts go to the terminal all the same. A dumb one is left to the library.
        output=None if is_dumb_terminal() else create_output(always_prefer_tty=True),
    )
    while not chat.leaving:
        try:
            line = prompt.prompt()
        except KeyboardInterrupt:
            continue
        except EOFError:
            return
        try:
            obey(chat, line)
        except KeyboardInterrupt:
            chat.display.note("stopped")
        # RuntimeError: the device is out of memory, say; OSError: stdout is a file on a full disk
        except (LlavaError, RuntimeError, MemoryError, OSError) as error:
            chat.display.error(str(error) or "out of memory")


def history_file() -> Path:
    """Where the lines are remembered from one conversation to the next: in the user's state folder."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state") / "llava-ov-manager" / "chat_history"


def open_history(chat: Chat) -> History:
    """The history in its file, which only the user can read; in memory where no file can be written."""
    try:
        path = history_file()
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home
        chat.display.note(f"the history is not kept: {error}")
        return InMemoryHistory()
    return _KeptHistory(path)


class _KeptHistory(FileHistory):
    def store_string(self, string: str) -> None:
        try:
            super().store_string(string)
        except (OSError, UnicodeEncodeError):  # a full disk must not end the conversation; the line is still in memory
            return


class CommandCompleter(Completer):
    """Names of commands, and what stands behind them: files of the right kind, settings."""

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        """prompt_toolkit's: commands and their words, and paths."""
        text = document.text_before_cursor
        name, blank, rest = text.partition(" ")
        if not blank:
            yield from (Completion(f"{choice} ", -len(text)) for choice in COMMANDS if name and choice.startswith(name))
            return
        wanted = COMMANDS[name].completes if name in COMMANDS else None
        if wanted == "setting":
            word = rest.split(" ")[-1]
            yield from (Completion(f"{choice}=", -len(word)) for choice in SETTINGS if choice.startswith(word))
        elif wanted is not None:
            fits = SUFFIXES.get(wanted)
            paths = PathCompleter(
                expanduser=True,
                file_filter=lambda path: fits is None or os.path.isdir(path) or Path(path).suffix.lower() in fits,
            )
            yield from paths.get_completions(Document(rest), complete_event)


def _bindings() -> KeyBindings:
    bindings = KeyBindings()

    @bindings.add("escape", "enter")
    def begin_a_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return bindings
