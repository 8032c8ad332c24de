"""The rows of one file of a snapshot as the records that LLaVA is trained on, repaired and counted."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

from llava.data.check import why_outside
from llava.data.images import image_size
from llava.data.prepare_rules import Row, Rule, rules_of
from llava.data.records import iter_records
from llava.data.snapshot import image_header, parquet_rows, write_whole
from llava.errors import DataError

NOTES = ".prepare"  # folder of what is finished
IMAGES = "images"  # folder of the images that a JSON file names
FILE_KEYS = ("image", "video")


@dataclass
class Tally:
    """What happened to the rows of a set. changed, dropped: by rule."""

    rows: int = 0
    written: int = 0
    changed: Counter = field(default_factory=Counter)
    dropped: Counter = field(default_factory=Counter)

    @classmethod
    def from_dict(cls, content: dict) -> "Tally":
        return cls(content["rows"], content["written"], Counter(content["changed"]), Counter(content["dropped"]))

    def to_dict(self) -> dict:
        return {"rows": self.rows, "written": self.written, "changed": self.changed, "dropped": self.dropped}

    def add(self, other: "Tally") -> None:
        self.rows, self.written = self.rows + other.rows, self.written + other.written
        self.changed, self.dropped = self.changed + other.changed, self.dropped + other.dropped


class Part(NamedTuple):
    """The work on one file of one set, and where its records are noted until the set is complete."""

    source: Path
    out: Path
    repository: str
    name: str
    file: Path
    drop_missing: bool

    @property
    def rules(self) -> list[Rule]:
        return rules_of(self.repository, self.name)

    @property
    def place(self) -> str:
        """The file's name and folders in one name, without those that the set's name tells."""
        parts = self.file.relative_to(self.source).with_suffix("").parts
        return "+".join(parts[1:] or parts)

    @property
    def records(self) -> Path:
        return self.out / self.repository / NOTES / self.name / f"{self.place}.records"

    @property
    def key(self) -> dict:
        rules = [rule.name for rule in self.rules]
        return file_key(self.file) | {"rules": rules, "drop_missing": self.drop_missing}


def parquet_records(part: Part, tally: Tally) -> Iterator[dict]:
    """The records of one parquet file, as they are to be; the images are written before."""
    folder = f"{part.repository}/{part.name}/{part.place}"
    for number, (record, images) in enumerate(parquet_rows(part.file)):
        tally.rows += 1
        paths, sizes = [], []
        try:
            for index, image in enumerate(images):
                content = image if isinstance(image, bytes) else _read_image(part, image)
                extension, size = image_header(content)
                suffix = f"-{index}" if len(images) > 1 else ""
                paths.append((f"{folder}/{number:06d}{suffix}.{extension}", content))
                sizes.append(size)
        except DataError:
            tally.dropped["unreadable_image"] += 1
            continue
        row = _repair(_record(record, [path for path, _ in paths]), partial(list, sizes), part.rules, tally)
        if row is not None:
            for path, content in paths:
                write_whole(part.out / path, content)
            yield row


def _read_image(part: Part, path: str) -> bytes:
    reason = why_outside(path, part.source)
    if reason:
        raise DataError(f"{part.file}: the path {path} {reason}")
    try:
        return (part.source / path).read_bytes()
    except OSError as error:
        raise DataError(f"{part.file}: {path} cannot be read: {error.strerror}") from None


def json_records(part: Part, tally: Tally) -> Iterator[dict]:
    """The records of a JSON file, whose images were unpacked, as they are to be.

    Raises DataError at the end when images are missing, unless their rows are dropped.
    """
    prefix, folder = f"{part.repository}/{IMAGES}", part.out / part.repository / IMAGES
    missing = []
    for record in iter_records(part.file):
        tally.rows += 1
        names = {key: file_names(record, key) for key in FILE_KEYS}
        flat = [name for of_key in names.values() for name in of_key]
        if any(why_outside(name, folder) for name in flat):
            tally.dropped["unsafe_path"] += 1
            continue
        sizes = partial(_image_sizes, [folder / name for name in names["image"]])
        row = _repair(_record(record, names["image"], names["video"]), sizes, part.rules, tally)
        if row is None:
            continue
        absent = [name for name in flat if not (folder / name).is_file()]
        if absent:
            missing += absent
            tally.dropped["missing_file"] += 1
            continue
        for key in FILE_KEYS:
            if key in row:
                given = row[key]
                row[key] = f"{prefix}/{given}" if isinstance(given, str) else [f"{prefix}/{n}" for n in given]
        yield row
    if missing and not part.drop_missing:
        raise DataError(
            f"{part.file}: the files of {tally.dropped['missing_file']:,} of {tally.rows:,} rows are in none of the "
            f"snapshot's archives and folders, first {missing[0]}; download the rest, or drop these rows with "
            "--drop_missing"
        )


def _image_sizes(files: list[Path]) -> list[tuple[int, int]]:
    return [image_size(file) for file in files]


def _record(record, images: list[str], videos: list[str] | None = None) -> dict:
    """A record of the same id and turns with these files, in LLaVA's form: a path, a list of paths, or no key."""
    record = record if isinstance(record, dict) else {}
    kept = {key: record[key] for key in ("id", "data_source", "conversations") if record.get(key) is not None}
    files = {"image": images, "video": videos or []}
    return kept | {key: paths if len(paths) > 1 else paths[0] for key, paths in files.items() if paths}


def file_names(record, key: str) -> list[str]:
    """The paths that a record gives under a key, as one or as a list."""
    given = record.get(key) if isinstance(record, dict) else None
    return [name for name in (given if isinstance(given, list) else [given]) if isinstance(name, str) and name]


def _repair(record: dict, image_sizes, rules: list[Rule], tally: Tally) -> dict | None:
    """The record after the rules, counted; None when it is dropped."""
    if not _has_turns(record.get("conversations")):
        tally.dropped["no_conversation"] += 1
        return None
    for rule in rules:
        changed = rule.apply(Row(record, image_sizes))
        if changed is None:
            tally.dropped[rule.name] += 1
            return None
        tally.changed[rule.name] += changed is not record
        record = changed
    return record


def _has_turns(turns) -> bool:
    turns = turns if isinstance(turns, list) else []
    texts = [turn.get(key) if isinstance(turn, dict) else None for turn in turns for key in ("from", "value")]
    return bool(texts) and all(isinstance(text, str) for text in texts)


def file_key(file: Path) -> dict:
    """What tells whether a file is still the one that it was."""
    found = file.stat()
    return {"file": file.name, "size": found.st_size, "modified": found.st_mtime_ns}
