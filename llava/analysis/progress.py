"""What is recorded of each sample, on disk as it comes, so that a run that was killed goes on where it was.

FOLDER/NAME-DIGEST.jsonl   {"settings"}, {"facts"}, then {"sample", "arrays"} of each; the digest is of the settings,
                           so that other settings begin a file of their own and nothing is lost

A sample that shows nothing has null for arrays.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from llava.errors import LlavaError
from llava.jsonl import append_line, cut_off_half_line, whole_lines

Arrays = dict[str, np.ndarray]


class Progress:
    """The samples of one model that are done.

    Args:
        folder: need not exist.
        name: the model's, for the file.
        settings: JSON values, all that a sample's arrays depend on.

    Raises:
        LlavaError: a line is damaged, or the file cannot be read or written.
    """

    def __init__(self, folder: Path, name: str, settings: dict[str, Any]):
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
        self.file = folder / f"{name}-{digest}.jsonl"
        self.facts: dict[str, Any] | None = None
        self.samples: dict[str, Arrays | None] = {}
        try:
            if self.file.exists():
                cut_off_half_line(self.file)
                for number, line in enumerate(whole_lines(self.file), start=1):
                    self._take(line, number)
            else:
                folder.mkdir(parents=True, exist_ok=True)
                append_line(self.file, {"settings": settings})
        except OSError as error:
            raise LlavaError(f"{self.file}: cannot be read or written ({error.strerror})") from error

    def _take(self, line: bytes, number: int) -> None:
        try:
            entry = json.loads(line)
            if "facts" in entry:
                self.facts = entry["facts"]
            elif "sample" in entry:
                arrays = entry["arrays"]
                of_names = arrays and {name: np.array(values, dtype=np.float32) for name, values in arrays.items()}
                self.samples[entry["sample"]] = of_names
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise LlavaError(f"{self.file} line {number}: damaged ({error}); remove the file to begin anew") from error

    def note_facts(self, facts: dict[str, Any]) -> None:
        """Stores what holds for every sample; once."""
        if self.facts is None:
            self.facts = facts
            append_line(self.file, {"facts": facts})

    def add(self, sample: str, arrays: Arrays | None) -> None:
        """Stores one more sample, which survives this process from here on."""
        self.samples[sample] = arrays
        listed = arrays and {name: array.tolist() for name, array in arrays.items()}
        append_line(self.file, {"sample": sample, "arrays": listed})
