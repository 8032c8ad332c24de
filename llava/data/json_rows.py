"""The rows of a JSON list or a JSONL file, one at a time: a file of millions of rows is never held in memory."""

import codecs
import io
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from llava.errors import DataError
from llava.text_files import open_text

BLOCK = 1 << 20  # characters read at a time
SUFFIXES = (".json", ".jsonl")
_BLANK = " \t\r\n"
_BLANKS = re.compile(rf"[{_BLANK}]*")


class NoRecordsError(DataError):
    """A JSON file that is sound and holds something else than a list of records."""


def iter_records(file: Path) -> Iterator:
    """Yields what the list holds, or what each line holds; DataError names the file and the line of a fault.

    Beyond JSON's grammar it is a fault when an object has a key twice, since one of the values would be lost.
    """
    try:
        with open_text(file) as stream:
            if file.suffix.lower() == ".jsonl":
                yield from _lines(stream, file)
            else:
                window = _Window(stream, file, decode)
                yield from _elements(window, window.value)
    except OSError as error:
        raise DataError(f"data file {file} cannot be read: {error.strerror}") from None
    except UnicodeError:
        raise DataError(f"data file {file} is not UTF-8 text") from None


def _lines(stream: TextIO, file: Path) -> Iterator:
    is_first = True
    for number, line in enumerate(stream, start=1):
        text = line.strip(_BLANK + "\ufeff")  # files with byte order marks may have been joined
        if not text:
            continue
        if is_first and text.startswith("["):
            raise DataError(f"data file {file} holds a JSON list, not one record a line; name it {file.stem}.json")
        is_first = False
        try:
            record, end = decode(text)
        except ValueError as error:
            raise _not_json(file, number, error) from None
        if end < len(text):
            raise _not_json(file, number, f"Extra data behind the record: {text[end : end + 20]!r}")
        yield record


def record_spans(stream: io.BufferedReader, file: Path) -> Iterator[tuple[int, int]]:
    """Yields where each record begins and ends, in bytes; `file` names the data, which is UTF-8.

    A byte is taken for a character: JSON's own are ASCII. The records are parsed without a look at keys that are there
    twice or at what is no UTF-8; whoever decodes them finds these, and a fault's line is what iter_records tells.
    Raises DataError for other faults.
    """
    begin = len(codecs.BOM_UTF8) if stream.peek(3).startswith(codecs.BOM_UTF8) else 0
    stream.seek(begin)
    if file.suffix.lower() == ".jsonl":
        yield from _line_spans(stream, file, begin)
    else:
        text = io.TextIOWrapper(stream, encoding="latin-1", newline="")
        window = _Window(text, file, _PLAIN_DECODER.raw_decode)
        window.dropped = begin
        yield from _elements(window, window.span)


def _line_spans(stream: BinaryIO, file: Path, begin: int) -> Iterator[tuple[int, int]]:
    is_first, rest = True, b""
    block = b" "
    while block:
        block = stream.read(BLOCK)
        lines = (rest + block).splitlines(keepends=True)
        rest = lines.pop() if block and lines else b""
        for line in lines:
            text = _trimmed(line)
            if is_first and text.startswith(b"["):
                raise DataError(f"data file {file} holds a JSON list, not one record a line; name it {file.stem}.json")
            if text:
                is_first = False
                first = begin + line.find(text)
                yield first, first + len(text)
            begin += len(line)


def _trimmed(line: bytes) -> bytes:
    text = line.strip(_BLANK.encode())
    while text.startswith(codecs.BOM_UTF8) or text.endswith(codecs.BOM_UTF8):
        text = text.removeprefix(codecs.BOM_UTF8).removesuffix(codecs.BOM_UTF8).strip(_BLANK.encode())
    return text


def _elements(window: "_Window", take: Callable) -> Iterator:
    """What take() makes of each element of a JSON list.

    Each must be an object, a list or a text: a number cut in two reads as a number.
    """
    file = window.file
    if window.peek() not in ("[", ""):
        value = window.value()
        if window.peek() in ("{", "["):
            raise DataError(f"data file {file} holds one record after another, not a list; name it {file.stem}.jsonl")
        raise NoRecordsError(f"data file {file} must hold a list of records, found {type(value).__name__}")
    if not window.take():
        return  # an empty file is an empty list
    more = window.peek() != "]"
    while more:
        yield take()
        more = window.peek() == ","
        if more:
            window.take()
            if window.peek() == "]":
                raise window.fault("a comma stands before the list's end")
    if window.take() != "]":
        raise window.fault("Expecting ',' delimiter")
    if window.peek():
        raise window.fault("Extra data")


class _Window:
    """The part of a text that is being read, and the number of its line."""

    def __init__(self, stream: TextIO, file: Path, decode: Callable[[str, int], tuple]):
        self.stream, self.file, self.decode = stream, file, decode
        self.text, self.position, self.line, self.dropped = "", 0, 1, 0

    def peek(self) -> str:
        """The next character that is not blank, not taken yet; "" at the end."""
        while True:
            if blanks := _BLANKS.match(self.text, self.position):
                self.position = blanks.end()
            if self.position < len(self.text) or not self._read(BLOCK):
                return self.text[self.position : self.position + 1]

    def take(self) -> str:
        character = self.peek()
        self.position += len(character)
        return character

    def value(self) -> Any:
        """The next JSON value; what is cut off by the window's end is tried again with twice as much text."""
        self.peek()
        size = BLOCK
        while True:
            try:
                value, self.position = self.decode(self.text, self.position)
                return value
            except json.JSONDecodeError as error:
                if not self._read(size):
                    self.position = error.pos
                    raise self.fault(error.msg) from None
                size *= 2
            except ValueError as error:
                raise self.fault(f"{error}, in the record that begins here") from None

    def span(self) -> tuple[int, int]:
        """Where the next JSON value begins and ends, in characters from the begin of the stream; takes it."""
        self.peek()
        begin = self.dropped + self.position
        self.value()
        return begin, self.dropped + self.position

    def fault(self, reason: str) -> DataError:
        return _not_json(self.file, self.line + self.text.count("\n", 0, self.position), reason)

    def _read(self, size: int) -> bool:
        """Drops what was taken and adds up to `size` characters; False at the end of the file."""
        block = self.stream.read(size)
        self.line += self.text.count("\n", 0, self.position)
        self.dropped += self.position
        self.text, self.position = self.text[self.position :] + block, 0
        return bool(block)


def decode(text: str, begin: int = 0) -> tuple:
    """The JSON value that begins at `begin`, and where it ends.

    Raises JSONDecodeError for what may be the beginning of a value, ValueError for what is none however it goes on.
    """
    try:
        return _DECODER.raw_decode(text, begin)
    except json.JSONDecodeError:
        raise
    except ValueError as error:
        raise ValueError(str(error).partition(";")[0]) from None  # Python's advice about long numbers
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _unique(pairs: list[tuple]) -> dict:
    record = dict(pairs)
    if len(record) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in record if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} is there {names.count(twice)} times")
    return record


_DECODER = json.JSONDecoder(object_pairs_hook=_unique)
_PLAIN_DECODER = json.JSONDecoder()  # thrice as fast


def _not_json(file: Path, line: int, reason: object) -> DataError:
    return DataError(f"data file {file} line {line} is not JSON: {reason}")
