"""A hash of all that is learned from: the samples' content and order, and the costs that decide the order of training.

Of millions of samples it takes processes a while, since every record is read. So it is kept beside the index of the
first large data file, under a name that tells what it is the hash of.
"""

import hashlib
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from llava.data.index import BLOCK
from llava.data.indexing import unfinished_in
from llava.data.record_store import RecordStore
from llava.data.schema import Sample
from llava.data.workers import Workers

VERSION = 1


def content_digest(samples: Sequence[Sample], costs: Sequence[int]) -> str:
    """The SHA-256 of every sample's id, turns, images, videos and cost, in their order."""
    numbers = np.asarray(costs)
    if not isinstance(samples, RecordStore):
        return hashlib.sha256(_content(samples, numbers)).hexdigest()
    kept = _place(samples, numbers)
    if kept is not None and kept.is_file():
        return kept.read_text()
    digest = hashlib.sha256()
    with Workers() as workers:
        blocks = list(samples.blocks())
        begins = np.cumsum([0, *map(len, blocks)]).tolist()
        tasks = ((block, numbers[begin : begin + len(block)]) for block, begin in zip(blocks, begins))
        for content in workers.map(_content, tasks, alone=len(samples) <= BLOCK):
            digest.update(content)
    if kept is not None:
        _keep(kept, digest.hexdigest())
    return digest.hexdigest()


def _content(samples: Sequence[Sample], costs: np.ndarray) -> bytes:
    texts = (
        repr((sample.id, sample.turns, sample.images, sample.videos, cost))
        for sample, cost in zip(samples, costs.tolist(), strict=True)
    )
    return "".join(texts).encode()


def _place(store: RecordStore, costs: np.ndarray) -> Path | None:
    """Where the hash is kept; None where every data file is small."""
    folder = next((part.index.folder for part in store.parts if part.index.folder is not None), None)
    if folder is None:
        return None
    key = hashlib.sha256()
    for part in store.parts:
        files = (os.path.realpath(part.index.file), str(part.index.file), part.index.key)  # a name may be an id
        key.update(repr((VERSION, *files, len(part.rows))).encode())
        key.update(np.asarray(part.rows, dtype=np.int64).tobytes())
    key.update(costs.astype(np.int64).tobytes())
    return folder / f"content-{key.hexdigest()[:32]}"


def _keep(place: Path, digest: str) -> None:
    """Where nothing can be written the hash is computed at the next start."""
    with suppress(OSError):
        unfinished = unfinished_in(place.parent)
        unfinished.write_text(digest)
        unfinished.rename(place)
