"""Answers on disk, written as they come, so that a run that was killed goes on where it was.

FOLDER/rank0.jsonl, rank1.jsonl, ...   one line per answer: {"key", "doc_id", "answer", ...}; a rank appends to its own

A key says everything that an answer depends on. Answers with other keys stay in the files and are never used.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from loguru import logger

from llava.data.schema import Dialogue
from llava.errors import LlavaError
from llava.jsonl import append_line, cut_off_half_line, whole_lines

KEY_VERSION = 1  # to be raised when the same model answers the same question differently, by a change of our code


def answer_key(dialogue: Dialogue, *settings: Any) -> str:
    """32 hex digits that change with anything that the answer depends on.

    dialogue: its turns and every pixel of its images and frames. settings: and model and document, as values whose repr
    says all of them.
    """
    digest = hashlib.sha256(repr((KEY_VERSION, settings, [(turn.role, turn.text) for turn in dialogue.turns])).encode())
    for visual in (dialogue.images, *dialogue.videos):
        digest.update(f"{len(visual)} pictures".encode())
        for picture in visual:
            pixels = np.asarray(picture)
            digest.update(repr(pixels.shape).encode())
            digest.update(pixels.tobytes())
    return digest.hexdigest()[:32]


class AnswerStore:
    """The answers in a folder, of all ranks and of earlier runs with any number of them.

    folder: need not exist; None keeps the answers in memory. rank: of this process, which names its file.
    """

    def __init__(self, folder: Path | None, rank: int = 0):
        self._rows: dict[str, dict] = {}
        self._file = None if folder is None else folder / f"rank{rank}.jsonl"
        self._begun = False  # whether this process has written
        for file in sorted(folder.glob("rank*.jsonl")) if folder is not None else ():
            for row in _read(file):
                self._rows.setdefault(row["key"], row)

    def __contains__(self, key: str) -> bool:
        return key in self._rows

    @property
    def on_disk(self) -> bool:
        """Whether answers are kept in files."""
        return self._file is not None

    def row(self, key: str) -> dict:
        """All that was stored with an answer. KeyError when there is none."""
        return self._rows[key]

    def append(self, key: str, doc_id: int, answer: str, **facts: Any) -> None:
        """Stores an answer, which survives this process from here on. facts: what else the line shall tell."""
        row = {"key": key, "doc_id": doc_id, "answer": answer, **facts}
        self._rows[key] = row
        if self._file is None:
            return
        if not self._begun:
            self._begun = True
            self._file.parent.mkdir(parents=True, exist_ok=True)
            cut_off_half_line(self._file)
        append_line(self._file, row)

    def only_weights(self) -> str:
        """The model whose answers these are, where its folder is not at hand. LlavaError unless it is exactly one."""
        models = sorted({row["weights"] for row in self._rows.values() if "weights" in row})
        if len(models) != 1:
            raise LlavaError(
                f"stored answers of one model are needed, found {len(models)} ({', '.join(models) or '-'})"
            )
        return models[0]


def _read(file: Path) -> list[dict]:
    rows = []
    for number, line in enumerate(whole_lines(file), start=1):
        try:
            row = json.loads(line)
            if not (isinstance(row["key"], str) and isinstance(row["answer"], str)):
                raise TypeError("key and answer must be texts")
            rows.append(row)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            logger.warning(f"{file} line {number}: not a stored answer, left out ({type(error).__name__}: {error})")
    return rows
