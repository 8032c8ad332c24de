"""Conversations in files: written as they go (--log), or at once (/save), and read again (--load, /load).

A file of /save that ends in .txt or .md is for people; others are for both:
JSON lines, one event each, the first a header; or, in a file whose name ends in .json, the header with all "events".

{"event": "start", "format": "llava-chat", "version": 1, "model": ..., "system": ..., "settings": {...}}
{"event": "answer", "question": ..., "images": [{"path", "sha256", "source"}], "videos": [...], "answer": ..., ...}
{"event": "retry", ...}        as answer, in place of the last one
{"event": "undo"}  {"event": "reset"}  {"event": "system", "text": ...}  {"event": "set", "settings": {...}}

Images and videos are not stored, but named by path and hash. What came from the web or the clipboard, and has no path
of its own, is copied into a folder beside the log.
"""

import json
import os
import shutil
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import UnionType
from typing import Any

from llava.chat.exchange import EMPTY, Exchange, checked_system, placed
from llava.chat.media import MediaReader, Medium
from llava.chat.session import Session
from llava.chat.settings import SETTINGS, Settings, changed
from llava.data.video import VideoSampling
from llava.errors import DataError, LlavaError
from llava.files import whole_file
from llava.jsonl import append_line, cut_off_half_line, json_line

FORMAT, VERSION = "llava-chat", 1
READABLE = (".txt", ".md")
SUFFIXES = (".jsonl", ".json", *READABLE)


@dataclass
class Talk:
    """A conversation that was read. notes: what the user should know about it, a line each."""

    model: str
    system: str | None
    settings: Settings
    exchanges: list[Exchange]
    notes: list[str]


class LogWriter:
    """Appends each change of a conversation to a file, as `Session.record`."""

    def __init__(self, path: Path, model: str, session: Session, goes_on: bool):
        """goes_on: the file holds the session's conversation already; else it must not exist.

        Raises LlavaError when it cannot be written.
        """
        self.path = path
        try:
            if goes_on:
                _prepare_to_append(path)
            else:
                with open(path, "x", encoding="utf-8") as file:
                    file.write(json_line(_header(model, session)))
                for exchange in session.exchanges:
                    self("answer", exchange)
        except FileExistsError:
            raise LlavaError(_log_exists(path)) from None
        except OSError as error:
            raise LlavaError(f"the log {path} cannot be written: {error.strerror}") from None

    def __call__(self, event: str, value: Any = None) -> None:
        """Raises LlavaError when the file cannot be written; the conversation itself is untouched."""
        try:
            append_line(self.path, _event(event, value, self.path))
        except OSError as error:
            raise LlavaError(f"the log {self.path} cannot be written: {error.strerror}") from None


def save(path: Path, model: str, session: Session) -> None:
    """Writes the conversation as it stands; the file is whole or is not there. Raises LlavaError."""
    try:
        header = _header(model, session)
        if path.suffix.lower() in READABLE:
            text = _readable(model, session)
        elif path.suffix.lower() == ".json":
            text = json.dumps({**header, "events": _events(session, path)}, ensure_ascii=False, indent=1) + "\n"
        else:
            text = "".join(map(json_line, [header, *_events(session, path)]))
        with whole_file(path) as file:
            file.write(text)
    except OSError as error:
        raise LlavaError(f"{path} cannot be written: {error.strerror}") from None


def check_suffix(path: Path) -> None:
    """Raises LlavaError for a file whose name does not say what `save` writes into it."""
    if path.suffix.lower() not in SUFFIXES:
        raise LlavaError(f"{path} must end in .jsonl or .json, to be loaded again, or in .txt or .md, to be read")


def check_log(path: Path, goes_on: bool) -> None:
    """Raises LlavaError for a log that `LogWriter` could not begin; writes nothing."""
    if goes_on:
        return
    if path.exists():
        raise LlavaError(_log_exists(path))
    if not path.absolute().parent.is_dir():
        raise LlavaError(f"the log {path} cannot be written: {path.absolute().parent} is no folder")


def _log_exists(path: Path) -> str:
    return f"the log {path} exists; go on with it by --load {path}, or name another"


def load(path: Path, media: MediaReader) -> Talk:
    """Reads a conversation and opens its images and videos.

    Raises LlavaError, naming the file and the line or event, for what is no such log, and for an image or video that is
    missing or has changed.
    """
    header, events, notes = _read(path)
    if header.get("event") != "start" or header.get("format") != FORMAT:
        raise LlavaError(f"{path} is no log of llava chat")
    if header.get("version") != VERSION:
        raise LlavaError(f"{path} has version {header.get('version')} of this format; version {VERSION} is read")
    where = f"{path}, event 1"
    system, settings = _system(header, where), _settings(header, where)
    stored: list[tuple[str, dict]] = []
    for number, event in enumerate(events, start=2):
        where = f"{path}, event {number}"
        kind = event.get("event")
        if kind == "reset":
            stored = []
        elif kind == "system":
            system = _system(event, where, "text")
        elif kind == "set":
            settings = _settings(event, where)
        elif kind in ("undo", "retry", "answer"):
            if kind != "answer" and not stored:
                raise LlavaError(f"{where}: {kind} without a turn")
            stored = stored[:-1] if kind != "answer" else stored
            stored += [(where, event)] if kind != "undo" else []
        else:
            raise LlavaError(f"{where}: unknown event {kind!r}")
    opened: dict[tuple, Medium] = {}
    exchanges = [_exchange(event, path, where, media, opened) for where, event in stored]
    return Talk(_field(header, "model", str, f"{path}, event 1"), system, settings, exchanges, notes)


def record_of(medium: Medium) -> dict:
    """A medium by path, hash, and the name that the user gave it; a video with how its frames were chosen."""
    sampling = asdict(medium.sampling) if medium.sampling is not None else {}
    return {"path": str(medium.path), "sha256": medium.sha256, "source": medium.source, **sampling}


def _header(model: str, session: Session) -> dict:
    start = {"event": "start", "format": FORMAT, "version": VERSION, "model": model}
    return {**start, "system": session.system, "settings": asdict(session.settings)}


def _event(event: str, value: Any, path: Path) -> dict:
    if event in ("answer", "retry"):
        shown = {f"{kind}s": [_stored(m, path) for m in value.of_kind(kind)] for kind in ("image", "video")}
        return {
            "event": event,
            "question": value.question,
            **shown,
            "answer": value.answer,
            "stopped": value.stopped,
            "tokens": asdict(value.usage) if value.usage else None,
            "seconds": asdict(value.timing) if value.timing else None,
        }
    return {"event": event, **({"text": value} if event == "system" else {"settings": value} if event == "set" else {})}


def _events(session: Session, path: Path) -> list[dict]:
    return [_event("answer", exchange, path) for exchange in session.exchanges]


def _readable(model: str, session: Session) -> str:
    """The conversation as text that is Markdown, too: questions are quoted."""
    parts = [f"A conversation with {model}"]
    if session.system is not None:
        parts.append(f"System message: {session.system}")
    for exchange in session.exchanges:
        quoted = [*map(str, exchange.media), *exchange.question.splitlines()]
        parts += ["\n".join(f"> {line}" for line in quoted), exchange.answer or EMPTY]
        parts += ["(stopped)"] if exchange.stopped else []
    return "\n\n".join(parts) + "\n"


def _stored(medium: Medium, log: Path) -> dict:
    record = record_of(medium)
    if medium.fetched:
        folder = log.with_name(f"{log.name}.media")
        folder.mkdir(exist_ok=True)
        name = medium.sha256[:16] + medium.path.suffix
        shutil.copyfile(medium.path, folder / name)
        record["path"] = f"{folder.name}/{name}"  # so that log and folder can go elsewhere together
    return record


def _prepare_to_append(path: Path) -> None:
    """Removes a half-written last line. Raises LlavaError for a log that is one JSON document."""
    if path.read_bytes().startswith(b"{\n"):
        raise LlavaError(f"the log {path} is one JSON document, nothing can be added; name a .jsonl file")
    cut_off_half_line(path)


def _read(path: Path) -> tuple[dict, list[dict], list[str]]:
    """The header, the events, and what is to be said about the file."""
    try:
        if path.exists() and not path.is_file():  # a device or a pipe could be read for ever
            raise LlavaError(f"{path} is no regular file")
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise LlavaError(f"{path} does not exist") from None
    except (OSError, UnicodeDecodeError) as error:
        raise LlavaError(f"{path} cannot be read: {getattr(error, 'strerror', None) or 'it is no text'}") from None
    notes = []
    try:
        whole = json.loads(text)
        rest = whole.pop("events", []) if isinstance(whole, dict) else None
        events = [whole, *rest] if isinstance(rest, list) else []
    except (ValueError, RecursionError):
        if path.suffix.lower() in READABLE and not text.startswith("{"):
            raise LlavaError(
                f"{path} is no log of llava chat; of what /save writes, .jsonl and .json are loaded"
            ) from None
        *lines, rest = text.split("\n")
        if rest:
            notes.append(f"{path}: the last line is half-written and is left out")
        events = [_parsed(line, f"{path}, line {number}") for number, line in enumerate(lines, start=1)]
    if not events or not all(isinstance(event, dict) for event in events):
        raise LlavaError(f"{path} is no log of llava chat")
    return events[0], events[1:], notes


def _parsed(line: str, where: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise LlavaError(f"{where}: not JSON ({error})") from None


def _field(event: dict, name: str, kind: type | UnionType, where: str) -> Any:
    if not isinstance(event.get(name), kind):
        wanted = getattr(kind, "__name__", kind)
        raise LlavaError(f"{where}: {name!r} must be of type {wanted}, found {event.get(name)!r}")
    return event[name]


def _system(event: dict, where: str, name: str = "system") -> str | None:
    if event.get(name) is None:
        return None
    try:
        return checked_system(_field(event, name, str, where))
    except LlavaError as error:
        raise LlavaError(f"{where}: {error}") from None


def _settings(event: dict, where: str) -> Settings:
    values = _field(event, "settings", dict, where)
    for name, value in values.items():
        setting = SETTINGS.get(name)
        wanted = int if setting is not None and setting.whole else int | float
        fits = isinstance(value, wanted) and not isinstance(value, bool)
        if setting is None or not (fits or (value is None and name == "seed")):
            raise LlavaError(f"{where}: no setting: {name!r}: {value!r}")
    return changed(Settings(), values, f"{where}: ")


def _exchange(event: dict, log: Path, where: str, media: MediaReader, opened: dict) -> Exchange:
    shown = [
        _medium(record, kind, log, where, media, opened)
        for kind in ("image", "video")
        for record in _field(event, f"{kind}s", list, where)
    ]
    question, answer = (_field(event, name, str, where) for name in ("question", "answer"))
    exchange = Exchange(question, tuple(shown), answer, event.get("stopped") is True)
    try:
        placed(exchange)  # raises when the question was edited, say
    except LlavaError as error:
        raise LlavaError(f"{where}: {error}") from None
    return exchange


def _medium(record: Any, kind: str, log: Path, where: str, media: MediaReader, opened: dict) -> Medium:
    """Opened once, so that the same image of two turns is the same object."""
    if not isinstance(record, dict):
        raise LlavaError(f"{where}: {kind} must be an object, found {record!r}")
    path, sha256 = log.parent / _field(record, "path", str, where), _field(record, "sha256", str, where)
    names = [field.name for field in fields(VideoSampling) if kind == "video"]
    sampling = VideoSampling(**{name: _field(record, name, int | float, where) for name in names}) if names else None
    key = (kind, path, sha256, sampling)
    if key not in opened:
        source = str(record.get("source", path))
        try:
            opened[key] = media.open_stored(Path(os.path.abspath(path)), sha256, source, kind, sampling)
        except DataError as error:
            raise DataError(f"{where}: {error}") from None
    return opened[key]
