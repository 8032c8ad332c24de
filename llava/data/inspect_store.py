"""What is wrong with the samples of a mixture, by its index: only rows that are not plainly sound are looked at."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from llava.data.conversation import TEMPLATES
from llava.data.image_folder import ImageFolder
from llava.data.index import CLEAN, FAULTY, SCAN, RecordIndex, give_back
from llava.data.indexing import index_file
from llava.data.inspect import Inspection, SampleLines, inspect_sample, lines_of
from llava.data.notes import notes_of
from llava.data.ragged import Ragged
from llava.data.record_store import BLOCK, Part, RecordStore
from llava.data.video import EVERY_SECOND, VideoSampling, VideoTimes, probe_video
from llava.data.visuals import read_visuals
from llava.data.workers import Workers


class ProbedVideos:
    """What is known of each sample's videos: how many frames are taken (Ragged), and the times, read when asked for."""

    def __init__(self, store: RecordStore, frames: Ragged, image_folder: ImageFolder, video_sampling: VideoSampling):
        self.store, self.frames = store, frames
        self.image_folder, self.video_sampling = image_folder, video_sampling

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, position: int) -> list[VideoTimes]:
        if not self.frames.counts[position]:
            return []
        paths = self.store[position].videos
        return [probe_video(self.image_folder.file(path), self.video_sampling) for path in paths]

    def __iter__(self) -> Iterator[list[VideoTimes]]:
        return (self[position] for position in range(len(self)))


def inspect_store(
    store: RecordStore,
    image_folder: str | Path | ImageFolder,
    video_sampling: VideoSampling = EVERY_SECOND,
    template: str = "qwen_1_5",
    workers: Workers | None = None,
    skip_ids: frozenset[str] = frozenset(),
) -> Inspection:
    """As inspect_samples: sizes and frames as arrays, and those samples' faults and notes that have any.

    Images and videos that were read before and have not changed since are not opened. skip_ids: of samples of which
    nothing is told.
    """
    folder = ImageFolder.of(image_folder)
    with workers or Workers() as workers:
        visuals = visuals_of(store, folder, video_sampling, workers)
        sizes, frames, tasks = [], [], []
        for part in store.parts:
            for block in _blocks(part):
                table = _table(part.index, block, visuals[part.index.file], template)
                sizes.append(table.sizes)
                frames.append(table.frames)
                odd, opened = block.rows[table.odd], table.opened[table.odd]
                for begin in range(0, len(odd), BLOCK):
                    told = slice(begin, begin + BLOCK)
                    tasks.append((part.index, odd[told], opened[told], folder, video_sampling, template, skip_ids))
            give_back(visuals[part.index.file])
        videos = ProbedVideos(store, _join(frames, np.zeros(0, np.int32)), folder, video_sampling)
        inspection = Inspection(_join(sizes, np.zeros((0, 2), np.int32)), videos, [])
        for block in workers.map(_tell, tasks, alone=sum(len(task[1]) for task in tasks) <= BLOCK):
            for lines in block:
                inspection.add(lines)
    return inspection


def keep_index(file: Path, image_folder: str | Path | ImageFolder, workers: Workers) -> None:
    """Makes what a start of training needs of a data file, unless it is there or made faster than it is found.

    Videos are left to the start, which has a decoder for them; images are found there if it samples videos as recipes
    do of themselves. Raises DataError as index_files does.
    """
    index = index_file(file, workers)
    if index.folder is not None:
        images = ~index.facts.path_ends["is_video"]
        read_visuals(index, images, ImageFolder.of(image_folder), EVERY_SECOND, workers)


def visuals_of(
    store: RecordStore, folder: ImageFolder, video_sampling: VideoSampling, workers: Workers
) -> dict[Path, np.ndarray]:
    """What is known of the images and videos of each data file, those of rows that are taken looked at."""
    wanted: dict[Path, np.ndarray] = {}
    indices = {part.index.file: part.index for part in store.parts}
    for part in store.parts:
        wanted_of_file = wanted.setdefault(part.index.file, np.zeros(len(part.index.facts.path_ends), dtype=bool))
        for block in _blocks(part):
            wanted_of_file[block.numbers()] = True
    return {
        file: read_visuals(indices[file], numbers, folder, video_sampling, workers) for file, numbers in wanted.items()
    }


class _Block(NamedTuple):
    """Some rows that are taken of a file, and of each: where its images and videos begin among all of the file.

    counts: how many these are.
    """

    rows: np.ndarray
    begins: np.ndarray
    counts: np.ndarray

    def numbers(self) -> np.ndarray:
        """Of all these images and videos, row by row."""
        before = np.cumsum(self.counts) - self.counts
        return np.repeat(self.begins - before, self.counts) + np.arange(self.counts.sum())


def _blocks(part: Part) -> Iterator[_Block]:
    """The rows that are taken, of SCAN rows of the file at a time."""
    rows, end = part.index.facts.rows, 0
    for first in range(0, len(rows), SCAN):
        block = rows[first : first + SCAN]
        counts = block["images"].astype(np.int64) + block["videos"]
        begins = end + np.cumsum(counts) - counts
        end += int(counts.sum())
        taken = part.between(first, first + len(block))
        yield _Block(taken, begins[taken - first], counts[taken - first])


class _Table(NamedTuple):
    """Of some rows of a file: sizes and frames of usable ones; which are odd; which of these to open."""

    sizes: Ragged
    frames: Ragged
    odd: np.ndarray
    opened: np.ndarray


def _table(index: RecordIndex, block: _Block, visuals: np.ndarray, template: str) -> _Table:
    shown = visuals[block.numbers()]
    rows = Ragged(shown, block.counts)
    is_image, is_video = shown["width"] > 0, shown["frames"] > 0
    unread = rows.sums(~(is_image | is_video)) > 0
    verdicts = index.facts.rows["verdicts"][block.rows, TEMPLATES.index(template)]
    usable = index.facts.rows["usable"][block.rows] & ~unread
    kept = np.repeat(usable, block.counts)
    sizes = np.stack([shown["width"], shown["height"]], axis=1)
    return _Table(
        Ragged(sizes[is_image & kept], rows.sums(is_image & kept).astype(np.int32)),
        Ragged(shown["frames"][is_video & kept], rows.sums(is_video & kept).astype(np.int32)),
        odd=unread | (verdicts != CLEAN),
        opened=unread | (verdicts == FAULTY),
    )


def _join(tables: Sequence[Ragged], empty: np.ndarray) -> Ragged:
    values = np.concatenate([empty, *(table.values for table in tables)])
    return Ragged(values, np.concatenate([np.zeros(0, np.int32), *(table.counts for table in tables)]))


def _tell(
    index: RecordIndex,
    rows: np.ndarray,
    opened: np.ndarray,
    folder: ImageFolder,
    video_sampling: VideoSampling,
    template: str,
    skip_ids: frozenset[str],
) -> list[SampleLines]:
    """What is told of some samples. opened: those of which more is to be told than of the record alone."""
    lines = []
    for row, is_opened in zip(rows.tolist(), opened.tolist()):
        sample = index.sample(row)
        if sample.id in skip_ids:
            continue
        if is_opened:
            result = inspect_sample(sample, folder, video_sampling, template=template)
            lines.append(lines_of(sample, result.faults, result.notes))
        else:
            lines.append(lines_of(sample, [], notes_of(sample, template)))
    return lines
