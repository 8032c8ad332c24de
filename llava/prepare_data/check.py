"""`llava data check`: every row that a mixture takes is inspected, by several processes, and can be gone on with later.

Rows travel as samples, some hundred at a time; nothing of a row is kept but its faults and notes.
"""

import multiprocessing
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from llava.data.image_folder import ImageFolder
from llava.data.indexing import index_file
from llava.data.inspect import inspect_sample
from llava.data.inspect_store import visuals_of
from llava.data.json_rows import iter_records
from llava.data.mixture import MixtureEntry, choose_rows, mixture_entries
from llava.data.record_store import Part, RecordStore
from llava.data.schema import OutsidePaths, Sample, sample_of
from llava.data.video import EVERY_SECOND, VideoSampling
from llava.data.workers import Workers
from llava.errors import DataError, LlavaError
from llava.prepare_data.check_log import CheckLog
from llava.prepare_data.check_report import BadRow, FileReport
from llava.printable import brief, one_line

if TYPE_CHECKING:
    from llava.data.dataset import SupervisedDataset

BATCH = 500  # rows that a process is handed at a time, and that a killed check has to inspect again at most


@dataclass(frozen=True)
class CheckOptions:
    """What is looked for.

    decode: decode every image and the chosen frames of every video, instead of reading headers.
    template: the prompt template that has to take the turns.
    model: a model folder, whose processor counts tokens; more than max_length, or than the language model has
        positions, are a fault under on_over_long `error`, and else where the sample cannot be shortened so that an
        answer is left.
    """

    image_folder: str = "."
    outside_paths: OutsidePaths = "refuse"
    seed: int = 0
    decode: bool = False
    model: str | None = None
    max_length: int = 16384
    template: str = "qwen_1_5"
    on_over_long: str = "error"
    video_sampling: VideoSampling = EVERY_SECOND

    def folder(self) -> ImageFolder:
        """Where the images and videos lie, and which paths may lead out of it."""
        return ImageFolder(Path(self.image_folder), self.outside_paths)


def check_mixture(
    mixture: str | Path,
    options: CheckOptions,
    on_bad_row: Callable[[BadRow], None],
    progress_folder: Path | None = None,
    workers: int | None = None,
) -> list[FileReport]:
    """Inspects every row that the mixture takes; returns a report per data file, in the mixture's order.

    on_bad_row: is given the faults and notes, file by file and row by row.
    progress_folder: keeps what is finished until all is, so that a check that was killed goes on when it is started
        again with the same files and options.
    workers: processes; by default one per core, and none besides this one for small files.
    Raises DataError for a mixture that cannot be read or gives no row, LlavaError when a process dies.
    """
    entries = mixture_entries(mixture)
    if not Path(options.image_folder).is_dir():
        raise LlavaError(f"--image_folder {options.image_folder} is not a folder")
    workers = workers or os.cpu_count() or 1
    reports = []
    with _Inspectors(options, workers) as inspectors, tqdm(unit="row", desc="checked", disable=None) as bar:
        for number, entry in enumerate(entries):
            path = progress_folder and progress_folder / f"{number:03d}.jsonl"
            log = CheckLog(path, _key(entry, options)) if path else None
            report, bad = _check_file(entry, options, inspectors, log, bar, str(mixture))
            reports.append(report)
            for row in bad:
                on_bad_row(row)
    if not any(report.taken or not report.complete for report in reports):
        raise DataError(f"mixture {mixture} is empty: its {len(reports)} data files give 0 samples")
    if progress_folder:
        shutil.rmtree(progress_folder)
    return reports


def _check_file(
    entry: MixtureEntry, options: CheckOptions, inspectors: "_Inspectors", log: CheckLog | None, bar: tqdm, where: str
) -> tuple[FileReport, list[BadRow]]:
    """The report and the bad rows of one data file; a file that cannot be read is itself a bad row."""
    report = FileReport(str(entry.file), entry.sampling_strategy, entry.expected_rows)
    bad: list[BadRow] = []
    try:
        with Workers(inspectors.workers) as readers:
            index = index_file(entry.file, readers)
        report.rows = len(index)
        taken = choose_rows(report.rows, entry.sampling_strategy, f"{options.seed}/{entry.file.name}", where)
        report.taken = len(taken)
        bar.total = (bar.total or 0) + report.taken
        bar.set_postfix_str(entry.file.name)
        first_rows: dict[str, int] = {}
        for batch, faults in _inspected(entry.file, taken, inspectors, log):
            bar.update(len(batch))
            bad += [BadRow(report.file, *fault) for fault in faults]
            bad += [BadRow(report.file, *fault) for fault in _duplicates(batch, first_rows)]
    except DataError as error:
        report.complete = False
        bad.append(BadRow(report.file, 0, None, "record", one_line(str(error))))
    bad.sort(key=lambda row: row.row)
    report.counts.update(row.kind for row in bad)
    report.bad = len({row.row for row in bad if row.row and not row.is_note})
    if report.complete and not report.bad and index.folder is not None:
        with Workers(inspectors.workers) as readers:
            store = RecordStore([Part(index, taken)])
            visuals_of(store, options.folder(), options.video_sampling, readers)
    return report, bad


def _inspected(file: Path, taken: Sequence[int], inspectors: "_Inspectors", log: CheckLog | None) -> Iterator[tuple]:
    """Batches of (row, sample), in the file's order, with their faults and notes: (row, id, kind, message)."""
    batches = _batches(file, taken)
    for faults, batch in zip(log.batches if log else [], batches):
        yield batch, faults
    pending = deque()
    for batch in batches:
        pending.append((batch, inspectors.start(batch)))
        if len(pending) > inspectors.ahead:
            yield _finish(*pending.popleft(), log)
    while pending:
        yield _finish(*pending.popleft(), log)


def _batches(file: Path, taken: Sequence[int]) -> Iterator[list[tuple[int, Sample]]]:
    """The rows that are taken, as (row, counted from 1, and sample), BATCH at a time."""
    wanted = iter(taken)
    following = next(wanted, None)
    batch = []
    for row, record in enumerate(iter_records(file)):
        if row == following:
            batch.append((row + 1, sample_of(record, f"{file} row {row + 1}")))
            following = next(wanted, None)
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _finish(batch: list, result: Callable[[], list], log: CheckLog | None) -> tuple[list, list]:
    try:
        faults = result()
    except BrokenProcessPool:
        rows = f"rows {batch[0][0]} to {batch[-1][0]}, or of the next batches"
        raise LlavaError(
            f"a process died while it inspected {rows}; the same command goes on there where --out was given, "
            "and --workers 1 shows what it dies of"
        ) from None
    if log:
        log.add(faults)
    return batch, faults


def _duplicates(batch: list, first_rows: dict[str, int]) -> Iterator[tuple]:
    """A note for each row whose id an earlier row of the file has. first_rows: id to row, grows."""
    for row, sample in batch:
        name = _id(sample)
        if name is not None and first_rows.setdefault(name, row) != row:
            yield row, name, "duplicate_id", f"row {first_rows[name]} has the id {brief(name)} too"


def _id(sample: Sample) -> str | None:
    return None if sample.id == sample.origin else sample.id


class RowInspector:
    """Finds what is wrong and what is odd with samples: (row, id, kind, message) for each fault and note."""

    def __init__(self, options: CheckOptions):
        self.options = options
        self.token_counter = _token_counter(options) if options.model else None

    def __call__(self, batch: list[tuple[int, Sample]]) -> list[tuple[int, str | None, str, str]]:
        """The faults and notes of the rows, each with its row, the id and the kind."""
        return [(row, _id(sample), *finding) for row, sample in batch for finding in self._inspect(sample)]

    def _inspect(self, sample: Sample) -> list[tuple[str, str]]:
        options = self.options
        sizes, videos, faults, notes = inspect_sample(
            sample,
            options.folder(),
            options.video_sampling,
            decode=options.decode,
            template=options.template,
        )
        if not faults and self.token_counter is not None:
            too_long = self.token_counter.too_long(sample, sizes, videos)
            notes = notes if too_long is None else [*notes, too_long]
        return [*faults, *notes]


def _token_counter(options: CheckOptions) -> "SupervisedDataset":
    from llava.data.dataset import SupervisedDataset
    from llava.prepare_data.preview import load_processor, model_positions

    return SupervisedDataset(
        [],
        load_processor(options.model),
        positions=model_positions(options.model),
        template=options.template,
        max_length=options.max_length,
        on_over_long=options.on_over_long,
        video_sampling=options.video_sampling,
    )


_inspect_rows: RowInspector | None = None  # a worker process's own


def _start_worker(options: CheckOptions) -> None:
    global _inspect_rows
    _inspect_rows = RowInspector(options)


def _work(batch: list) -> list:
    return _inspect_rows(batch)


class _Inspectors:
    """Processes that inspect batches; the first is started for the first batch that is worth it."""

    def __init__(self, options: CheckOptions, workers: int):
        self.options, self.workers = options, workers
        self.ahead = 0 if workers == 1 else 4 * workers
        self.pool = None
        self.inline = RowInspector(options)  # here, so that a wrong model folder is told before any process starts

    def start(self, batch: list) -> Callable[[], list]:
        """A function that returns the batch's faults, and waits for them if need be."""
        if self.pool is None and (self.workers == 1 or len(batch) < BATCH):
            faults = self.inline(batch)
            return lambda: faults
        if self.pool is None:
            context = multiprocessing.get_context("spawn")  # decoders and tokenizers have threads, which a fork breaks
            self.pool = ProcessPoolExecutor(self.workers, context, _start_worker, (self.options,))
        return self.pool.submit(_work, batch).result

    def __enter__(self) -> "_Inspectors":
        return self

    def __exit__(self, *error: object) -> None:
        if self.pool:
            self.pool.shutdown(cancel_futures=True)


def _key(entry: MixtureEntry, options: CheckOptions) -> dict:
    """What a finished batch depends on, as JSON gives it back."""
    status = entry.file.stat() if entry.file.is_file() else None
    return {
        "file": str(entry.file.absolute()),
        "size": status and status.st_size,
        "modified": status and status.st_mtime_ns,
        "sampling_strategy": entry.sampling_strategy,
        "batch": BATCH,
        **asdict(options),
        "image_folder": str(Path(options.image_folder).absolute()),
    }
