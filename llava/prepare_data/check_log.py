"""What `llava data check` has inspected so far, so that a check that was killed can go on."""

import json
from pathlib import Path
from typing import Any

from llava.errors import LlavaError
from llava.jsonl import append_line, whole_lines


class CheckLog:
    """The finished batches of one data file, one line each; a line that a killed check left unfinished is dropped.

    Args:
        path: the file; what it holds under another key is dropped.
        key: what a finished batch depends on, as JSON gives it back.

    Attributes:
        batches: the faults and notes of each batch that is finished.

    Raises:
        LlavaError: It is damaged, or cannot be written.
    """

    def __init__(self, path: Path, key: dict):
        self.path = path
        lines = whole_lines(path) if path.is_file() else []
        if not lines or self._value(1, lines[0]) != key:
            lines = [json.dumps(key).encode()]
        self.batches: list[list] = [self._value(number, line) for number, line in enumerate(lines[1:], start=2)]
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"".join(line + b"\n" for line in lines))
        except OSError as error:
            raise LlavaError(f"{path} cannot be written: {error.strerror}") from None

    def add(self, faults: list) -> None:
        """Appends what was found in one more batch. Raises OSError."""
        append_line(self.path, faults)

    def _value(self, number: int, line: bytes) -> Any:
        try:
            return json.loads(line)
        except (ValueError, RecursionError) as error:
            raise LlavaError(f"{self.path}: line {number} is damaged ({error}); delete the file") from None
