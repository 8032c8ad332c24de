"""`llava data prepare`: a local snapshot of a hub data set becomes the mixture's JSON and images.

DIR/REPOSITORY/SET.json holds the records; their images lie under DIR/REPOSITORY, so that DIR is the image folder.
What is finished is noted in DIR/REPOSITORY/.prepare: the same command goes on where it was killed. Every file is
written under another name first and appears only when it is whole.
"""

import hashlib
import json
import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from llava.data.image_folder import why_outside
from llava.data.json_rows import iter_records
from llava.errors import DataError, LlavaError
from llava.files import whole_file
from llava.prepare_data.archives import Wanted, archives_of, extract
from llava.prepare_data.part import IMAGES, NOTES, Part, Tally, file_key, short_name
from llava.prepare_data.rows import (
    file_names,
    find_loose,
    is_path,
    json_records,
    parquet_records,
    tell_refused,
)
from llava.prepare_data.rules import DROPPED, Row, rules_of
from llava.prepare_data.snapshot import (
    FILE_KEYS,
    SourceSet,
    find_sets,
    place_whole,
    repository_name,
    write_whole,
)
from llava.text_files import read_json


class PreparedSet(NamedTuple):
    """A set that is complete. again: it was so before this run."""

    repository: str
    name: str
    file: Path
    tally: Tally
    again: bool

    def __str__(self) -> str:
        tally = self.tally
        complete = " (was complete)" if self.again else ""
        lines = [f"{self.file}: {tally.written:,} of {tally.rows:,} rows{complete}"]
        summaries = {rule.name: rule.summary for rule in rules_of(self.repository, self.name)}
        summaries |= {name: summary for name, summary in DROPPED.items() if tally.dropped[name]}
        for name, summary in summaries.items():
            lines.append(f"  {tally.changed[name]:>9,} changed {tally.dropped[name]:>9,} dropped  {name}: {summary}")
            if name in DROPPED:
                lines.append(f"{'':>40}first {tally.first[name]}")
        return "\n".join(lines)


class _Work(NamedTuple):
    """A set of the snapshot: its parts and the file that they become. tally: if that file is complete already."""

    name: str
    is_parquet: bool
    parts: list[Part]
    target: Path
    tally: Tally | None

    @property
    def note(self) -> Path:
        return self.parts[0].records.parent / "complete.json"

    @property
    def key(self) -> dict:
        return {"parts": [part.key for part in self.parts]}


def prepare(
    source: str | Path,
    out: str | Path,
    only: list[str] | None = None,
    drop_missing: bool = False,
    workers: int = 1,
    decode: bool = True,
) -> Iterator[PreparedSet]:
    """Yields the sets of a snapshot as they are completed.

    only: names of sets; all by default. drop_missing: drop rows whose image is not in the snapshot instead of
    refusing the set. workers: processes, which share out a set's parquet files. decode: decode every image, instead of
    reading its header.
    Raises DataError for files that cannot be used and, when all others are complete, for sets of which no row can be
    used; LlavaError for folders and names that do not fit.
    """
    source, out = Path(source), Path(out)
    sets, _ = find_sets(source)
    names = [source_set.name for source_set in sets]
    for name in only or []:
        if name not in names:
            raise LlavaError(f"{source} holds no set {name!r}; its sets are {', '.join(names)}")
    repository = repository_name(source)
    try:
        works = [
            _work(source_set, source, out, repository, drop_missing, decode)
            for source_set in sets
            if not only or source_set.name in only
        ]
        refused = _unpack(
            source, out / repository, [work for work in works if not work.is_parquet and work.tally is None]
        )
        unusable = []
        for work in works:
            if not work.is_parquet:
                work = work._replace(parts=[part._replace(refused=refused) for part in work.parts])
            tally = _complete(work, workers) if work.tally is None else work.tally
            if tally.written:
                yield PreparedSet(repository, work.name, work.target, tally, work.tally is not None)
            else:
                unusable.append(f"{work.name}: {_why_empty(tally)}")
        if unusable:
            raise DataError(f"no row of these sets can be used, and none is written: {'; '.join(unusable)}")
    except OSError as error:
        raise LlavaError(f"{error.filename or out} cannot be written: {error.strerror}") from None


def _why_empty(tally: Tally) -> str:
    reasons = [f"{count:,} dropped by {name}, first {tally.first[name]}" for name, count in tally.dropped.items()]
    return f"{tally.rows:,} rows, {', '.join(reasons) or 'none of them'}"


def _work(source_set: SourceSet, source: Path, out: Path, repository: str, drop_missing: bool, decode: bool) -> _Work:
    parts = [Part(source, out, repository, source_set.name, file, drop_missing, decode) for file in source_set.files]
    work = _Work(source_set.name, source_set.is_parquet, parts, out / repository / f"{source_set.name}.json", None)
    if not work.target.exists():
        return work
    note = _read_note(work.note)
    if note is None:
        raise LlavaError(f"{work.target} exists and was not written by this command; move it away to prepare it anew")
    is_same = note["key"] == work.key and note["list"] == file_key(work.target)
    return work._replace(tally=Tally.from_dict(note["tally"])) if is_same else work


def _complete(work: _Work, workers: int) -> Tally:
    tally = Tally()
    counts = _each(_note_parquet if work.is_parquet else _note_json, work.parts, workers)
    for counted in tqdm(counts, total=len(work.parts), desc=work.name, unit="file", disable=None):
        tally.add(Tally.from_dict(counted))
    if tally.written == 0:
        return tally
    _join([part.records for part in work.parts], work.target, work.note, {"key": work.key, "tally": tally.to_dict()})
    return tally


def _each(work: Callable[[Part], dict], parts: list[Part], workers: int) -> Iterator[dict]:
    if workers == 1 or len(parts) == 1:
        yield from map(work, parts)
        return
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(work, parts)


def _note_parquet(part: Part) -> dict:
    return _note_records(part, parquet_records)


def _note_json(part: Part) -> dict:
    return _note_records(part, json_records)


def _note_records(part: Part, records_of: Callable[[Part, Tally], Iterator[dict]]) -> dict:
    """Writes a part's records, one a line, unless that was done before; returns its tally as a dict."""
    note = part.records.with_suffix(".json")
    earlier = _read_note(note)
    if earlier is not None and earlier["key"] == part.key and part.records.is_file():
        return earlier["tally"]
    tally = Tally()
    part.records.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(part.records) as stream:
        try:
            for record in records_of(part, tally):
                stream.write(json.dumps(record, ensure_ascii=False) + "\n")
                tally.written += 1
        except RecursionError:
            raise DataError(f"{part.file} row {tally.rows} is nested too deeply") from None
    write_whole(note, json.dumps({"key": part.key, "tally": tally.to_dict()}).encode())
    return tally.to_dict()


def _join(parts: list[Path], target: Path, note: Path, content: dict) -> None:
    """Makes one JSON list of the parts' lines; the parts go when the list is there."""
    with whole_file(target) as stream:
        separator = "[\n"
        for part in parts:
            with open(part, encoding="utf-8", newline="\n") as lines:
                for line in lines:
                    stream.write(separator + line.rstrip("\n"))
                    separator = ",\n"
        stream.write("[]\n" if separator == "[\n" else "\n]\n")
        stream.flush()
        os.fsync(stream.fileno())
        list_key = file_key(Path(stream.name)) | {"file": target.name}
        write_whole(note, json.dumps(content | {"list": list_key}).encode())
    for part in parts:
        part.unlink()
        part.with_suffix(".json").unlink()


def _unpack(source: Path, folder: Path, works: list[_Work]) -> dict[str, str]:
    """Brings the files that the JSON sets name to their place, from folders and archives, each archive read once.

    Returns {name: why} of those that an archive holds and that are refused.
    """
    wanted: dict[str, Wanted] = {}
    for work in works:
        (part,) = work.parts
        for name, kind in _wanted_names(part, folder / IMAGES):
            target = folder / IMAGES / name
            wanted[name] = Wanted(target, kind)
            if not os.path.exists(target) and (loose := find_loose(name, part)):
                place_whole(target, loose)
    refused: dict[str, str] = {}
    if all(os.path.exists(file.target) for file in wanted.values()):
        return refused
    digest = hashlib.sha256("\n".join(sorted(wanted)).encode()).hexdigest()
    taken: dict[Path, str] = {}
    for archive in tqdm(archives_of(source), desc="archives", unit="file", disable=None):
        note = folder / NOTES / "archives" / short_name("+".join(archive.relative_to(source).parts), ".json")
        key = file_key(archive) | {"wanted": digest}
        noted = _read_note(note) or {}
        refused_here = noted.pop("refused", {})
        if noted != key:
            refused_here = extract(archive, wanted, taken)
            for line in refused_here.values():
                tell_refused(line)
            write_whole(note, json.dumps(key | {"refused": refused_here}).encode())
        refused |= refused_here
    return refused


def _wanted_names(part: Part, folder: Path) -> Iterator[tuple[str, str]]:
    """The files that the records name, each with its kind."""
    selecting = [rule for rule in part.rules if rule.selects]
    for record in iter_records(part.file):
        row = Row(record, list)
        if isinstance(record, dict) and all(rule.apply(row) is not None for rule in selecting):
            for kind in FILE_KEYS:
                for name in file_names(record, kind):
                    if is_path(name) and not why_outside(name, folder):
                        yield name, kind


def _read_note(note: Path) -> dict | None:
    return read_json(note) if note.is_file() else None
