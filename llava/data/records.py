"""The rows of a JSON list or a JSONL file, one at a time: a file of millions of rows is never held in memory."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from llava.errors import DataError

BLOCK = 1 << 20  # characters read at a time
_BLANKS = re.compile(r"[ \t\r\n]*")


def iter_records(file: Path) -> Iterator:
    """Yields what the list holds, or what each line holds; DataError names the file and the line of a fault."""
    try:
        with open(file, encoding="utf-8", newline="\n") as stream:
            yield from _lines(stream, file) if file.suffix == ".jsonl" else _elements(stream, file)
    except OSError as error:
        raise DataError(f"data file {file} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise DataError(f"data file {file} is not UTF-8 text") from None


def _lines(stream: TextIO, file: Path) -> Iterator:
    for number, line in enumerate(stream, start=1):
        if line.strip():
            try:
                yield json.loads(line)
            except json.JSONDecodeError as error:
                raise _not_json(file, number, error.msg) from None


def _elements(stream: TextIO, file: Path) -> Iterator:
    """The elements of a JSON list. Each must be an object, a list or a text: a number cut in two reads as a number."""
    window = _Window(stream, file)
    if window.peek() not in ("[", ""):
        found = window.value()
        raise DataError(f"data file {file} must hold a list of records, found {type(found).__name__}")
    if not window.take():
        return  # an empty file is an empty list
    more = window.peek() != "]"
    while more:
        yield window.value()
        more = window.peek() == ","
        if more:
            window.take()
    if window.take() != "]":
        raise window.fault("Expecting ',' delimiter")
    if window.peek():
        raise window.fault("Extra data")


class _Window:
    """The part of a text that is being read, and the number of its line."""

    def __init__(self, stream: TextIO, file: Path):
        self.stream, self.file = stream, file
        self.text, self.position, self.line = "", 0, 1
        self.decoder = json.JSONDecoder()

    def peek(self) -> str:
        """The next character that is not blank, not taken yet; "" at the end."""
        while True:
            self.position = _BLANKS.match(self.text, self.position).end()
            if self.position < len(self.text) or not self._read(BLOCK):
                return self.text[self.position : self.position + 1]

    def take(self) -> str:
        character = self.peek()
        self.position += len(character)
        return character

    def value(self):
        """The next JSON value; what is cut off by the window's end is tried again with twice as much text."""
        self.peek()
        size = BLOCK
        while True:
            try:
                found, self.position = self.decoder.raw_decode(self.text, self.position)
                return found
            except json.JSONDecodeError as error:
                if not self._read(size):
                    self.position = error.pos
                    raise self.fault(error.msg) from None
                size *= 2

    def fault(self, reason: str) -> DataError:
        return _not_json(self.file, self.line + self.text.count("\n", 0, self.position), reason)

    def _read(self, size: int) -> bool:
        """Drops what was taken and adds up to `size` characters; False at the end of the file."""
        block = self.stream.read(size)
        self.line += self.text.count("\n", 0, self.position)
        self.text, self.position = self.text[self.position :] + block, 0
        return bool(block)


def _not_json(file: Path, line: int, reason: str) -> DataError:
    return DataError(f"data file {file} line {line} is not JSON: {reason}")
