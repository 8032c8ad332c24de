"""Files of JSON lines that only grow and survive a kill.

A line is written in one piece with its newline. What a killed process left behind the last newline is no line: it is
not read, and it is cut off before the next line is written.
"""

import json
from pathlib import Path
from typing import Any


def whole_lines(file: Path) -> list[bytes]:
    """The lines of a file that end in a newline, without it. Raises OSError."""
    return file.read_bytes().split(b"\n")[:-1]


def json_line(value: Any) -> str:
    """A JSON value as a line, characters as they are."""
    return json.dumps(value, ensure_ascii=False) + "\n"


def cut_off_half_line(file: Path) -> None:
    """Removes what follows the last newline, so that the next line begins as one; a missing file stays missing."""
    if file.exists():
        with file.open("r+b") as stream:
            stream.truncate(stream.read().rfind(b"\n") + 1)


def append_line(file: Path, value: Any) -> None:
    """Writes one more line, which survives this process from here on. The folder must exist. Raises OSError."""
    # Half a character, as in a file's name that is no text, becomes JSON's own escape of it.
    with file.open("a", encoding="utf-8", errors="backslashreplace") as stream:
        stream.write(json_line(value))
