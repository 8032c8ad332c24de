"""What a user can write besides questions."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from textwrap import indent

from llava.chat.chat import Chat
from llava.chat.inline import begins_with_media, sources_of
from llava.chat.log import check_suffix, save
from llava.chat.paths import locate
from llava.chat.settings import SETTINGS, parse_settings, settings_notes, written
from llava.errors import LlavaError
from llava.text_table import text_table


@dataclass(frozen=True)
class Command:
    """run: given the chat and what stands behind the name. completes: what Tab completes there, see terminal.py."""

    arguments: str
    help: str
    run: Callable[[Chat, str], None]
    completes: str | None = None


def obey(chat: Chat, line: str) -> None:
    """Does what a line says. Raises LlavaError for what cannot be done; the conversation then is as it was."""
    line = line.strip()
    name, _, rest = line.partition(" ")
    if name in COMMANDS:
        command, rest = COMMANDS[name], rest.strip()
        if rest and not command.arguments:
            raise LlavaError(f"{name} takes nothing behind it, found {rest!r}")
        command.run(chat, rest)
    elif name.startswith("/") and not begins_with_media(line):
        raise LlavaError(_no_command(name))
    elif line:
        chat.say(line)


def _no_command(name: str) -> str:
    if locate(name) is not None:
        return f"{name} is a folder; name the images in it" if "/" in name[1:] else f"{name} is a folder and no command"
    if "/" in name[1:] or "." in name:
        return f"{name} is neither a command nor a file"
    return f"unknown command {name}; /help lists them"


def help_text() -> str:
    """The commands, a line each."""
    heads = {f"{name} {command.arguments}".strip(): command.help for name, command in COMMANDS.items()}
    commands = indent(text_table(list(heads.items()), right=[False]), "  ")
    return "\n".join(
        [
            "Type a question; images and videos in it, files or URLs, are shown with it. A word is",
            "a file if it exists and has a /, a suffix, quotes or an @: a.png, 'my page', @page.",
            "",
            "Commands:",
            commands,
            "Ctrl-C stops an answer, Ctrl-D leaves, Tab completes, Alt-Enter begins a line.",
        ]
    )


def _show(kind: str) -> Callable[[Chat, str], None]:
    def run(chat: Chat, rest: str) -> None:
        if not rest:
            raise LlavaError(f"/{kind} needs a path")
        chat.show([chat.media.open(source, kind) for source in sources_of(rest)])

    return run


def _paste(chat: Chat, rest: str) -> None:
    chat.show(chat.media.from_clipboard())


def _reset(chat: Chat, rest: str) -> None:
    chat.session.reset()
    chat.display.note("the conversation starts anew")


def _undo(chat: Chat, rest: str) -> None:
    if chat.session.waiting:
        sources = ", ".join(medium.source for medium in chat.session.waiting)
        chat.session.waiting = []
        chat.display.note(f"not shown: {sources}")
        return
    exchange = chat.session.undo()
    shown = "".join(f", {medium.source}" for medium in exchange.media)
    chat.display.note(f"taken back: {exchange.question}{shown}")


def _retry(chat: Chat, rest: str) -> None:
    chat.retry()


def _system(chat: Chat, rest: str) -> None:
    if rest:
        chat.session.set_system(None if rest == "default" else rest)
    system = chat.session.system
    chat.display.note(f"system message: {'the default' if system is None else system}")


def _set(chat: Chat, rest: str) -> None:
    if rest:
        chat.session.set_settings(parse_settings(chat.session.settings, rest))
    values = asdict(chat.session.settings)
    rows = [(f"{name}={written(value)}", SETTINGS[name].help) for name, value in values.items()]
    for line in text_table(rows, right=[False]).splitlines():
        chat.display.note(f"  {line}")
    for note in settings_notes(chat.session.settings):
        chat.display.note(note)


def _stats(chat: Chat, rest: str) -> None:
    chat.show_stats = not chat.show_stats
    shown = "shown after each answer" if chat.show_stats else "no longer shown"
    chat.display.note(f"tokens per second are {shown}")


def _tokens(chat: Chat, rest: str) -> None:
    session = chat.session
    limit = session.engine.model.config.text_config.max_position_embeddings
    chat.display.note(f"the next question comes after {session.count_next()} tokens; the model reads {limit}")
    if session.usage is not None:
        usage = session.usage
        chat.display.note(
            f"the last answer has {usage.answer} tokens; its prompt had {usage.prompt}, {usage.visual} of them visual: "
            f"{usage.prefilled} were computed, {usage.prompt - usage.prefilled} were kept from before"
        )


def _save(chat: Chat, rest: str) -> None:
    path = _file("/save", rest)
    check_suffix(path)
    if path.exists() and path.absolute() not in chat.files:
        raise LlavaError(f"{path} exists; name another file")
    save(path, chat.model, chat.session)
    chat.files.add(path.absolute())
    count = len(chat.session.exchanges)
    chat.display.note(f"{path}: {count} turn{'' if count == 1 else 's'} saved")


def _load(chat: Chat, rest: str) -> None:
    chat.load(_file("/load", rest))


def _file(command: str, rest: str) -> Path:
    if not rest:
        kinds = ".jsonl, .json, .txt or .md" if command == "/save" else ".jsonl or .json"
        raise LlavaError(f"{command} needs a file, {kinds}")
    return Path(rest.strip("'\"")).expanduser()


def _help(chat: Chat, rest: str) -> None:
    chat.display.note(help_text())


def _exit(chat: Chat, rest: str) -> None:
    chat.leaving = True


COMMANDS = {
    "/image": Command("PATH|URL...", "show an image together with the next question", _show("image"), "image"),
    "/video": Command("PATH|URL...", "show a video together with the next question", _show("video"), "video"),
    "/paste": Command("", "show the image on the clipboard", _paste),
    "/undo": Command("", "take back what waits to be shown, or the last turn", _undo),
    "/retry": Command("", "answer the last question again", _retry),
    "/reset": Command("", "forget the conversation and its images", _reset),
    "/system": Command("[TEXT|default]", "show or change the system message", _system),
    "/set": Command("[NAME=VALUE...]", "show or change how answers are made: temperature=0.7", _set, "setting"),
    "/stats": Command("", "show tokens per second after each answer, or no longer", _stats),
    "/tokens": Command("", "how long the conversation is", _tokens),
    "/save": Command("FILE", "write it down: .jsonl or .json for /load, .txt or .md to read", _save, "file"),
    "/load": Command("FILE", "go on with a conversation from a file", _load, "file"),
    "/help": Command("", "this text", _help),
    "/exit": Command("", "leave; so does Ctrl-D", _exit),
}
