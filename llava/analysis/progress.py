"""What is recorded of each sample, on disk as it comes, so that a run that was killed goes on where it was.

FOLDER/NAME-DIGEST.jsonl   {"settings"}, {"facts"}, then {"sample", "arrays"} of each; the digest is of the settings,
                           so that other settings begin a file of their own and nothing is lost

A sample that shows nothing has null for arrays. All files are of the same data, and those of one name of the same
weights, so that the pictures beside them show what can be compared.
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
        settings: JSON values, all that a sample's arrays depend on; `data` and `weights` are among them.

    Raises:
        LlavaError: the folder has samples of other data, or of a model of this name with other weights; a line is
            damaged; or the file cannot be read or written.
    """

    def __init__(self, folder: Path, name: str, settings: dict[str, Any]):
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
        self.file = folder / f"{name}-{digest}.jsonl"
        self.facts: dict[str, Any] | None = None
        self.samples: dict[str, Arrays | None] = {}
        try:
            for other in sorted(folder.glob("*.jsonl")):
                _check_alike(other, name, settings)
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


def _check_alike(file: Path, name: str, settings: dict[str, Any]) -> None:
    """Raises LlavaError for a file of other data, or of other weights of a model of this name."""
    lines = whole_lines(file)
    if not lines:
        return
    try:
        before = json.loads(lines[0])["settings"]
        data, weights = before["data"], before["weights"]
    except (ValueError, KeyError, TypeError) as error:
        raise LlavaError(f"{file} line 1: damaged ({error}); remove the file to begin anew") from error
    out = file.parent.parent
    if data != settings["data"]:
        raise LlavaError(f"{out} shows other data: {_differing(data, settings['data'])}; name another --out")
    if file.stem.rpartition("-")[0] == name and weights != settings["weights"]:
        raise LlavaError(
            f"{out} shows a model {name} with the weights {weights}, this one has {settings['weights']}; name another "
            "--out"
        )


def _differing(before: dict[str, Any], now: dict[str, Any]) -> str:
    """What differs between two identities of data, in words; of files which."""
    found = []
    for key in [*before, *(now.keys() - before.keys())]:
        old, new = before.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            found += [f"{name} has changed since" for name in old if name in new and old[name] != new[name]]
            old, new = ([name for name in one if name not in other] for one, other in ((old, new), (new, old)))
        if old != new:
            found.append(f"{key} {json.dumps(old)}, this is {json.dumps(new)}")
    return "; ".join(found)
