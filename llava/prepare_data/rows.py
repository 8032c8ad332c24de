"""The rows of one file of a snapshot as the records that LLaVA is trained on, repaired and counted."""

import os
import sys
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from llava.constants import FILE_LIMITS
from llava.data.conversation import template_turns
from llava.data.image_folder import why_outside
from llava.data.images import image_size, open_image
from llava.data.json_rows import decode, iter_records
from llava.data.schema import parse_sample
from llava.errors import DataError, MissingFileError
from llava.prepare_data.archives import too_large
from llava.prepare_data.part import IMAGES, LOOSE, Missing, Part, Tally
from llava.prepare_data.rules import Row
from llava.prepare_data.snapshot import FILE_KEYS, image_header, parquet_rows, place_whole, video_extension, write_whole
from llava.printable import one_line


def parquet_records(part: Part, tally: Tally) -> Iterator[dict]:
    """The records of one parquet file, as they are to be; the images and videos are written before.

    Raises DataError at the end when a path leads to nothing, unless such rows are dropped.
    """
    folder = f"{part.repository}/{part.name}/{part.place}"
    missing = Missing()
    for number, (record, files) in enumerate(parquet_rows(part.file, part.out)):
        tally.rows += 1
        where = f"{part.file} row {number + 1}"
        paths, sizes, contents = {}, [], {}
        try:
            for key in FILE_KEYS:
                paths[key] = []
                for index, given in enumerate(files[key]):
                    content = _find(part, given, where)
                    _check_size(content, key, where)
                    suffix = f"-{index}" if len(files[key]) > 1 else ""
                    if key == "video":
                        extension = _video_suffix(content)
                    else:
                        content = content if isinstance(content, bytes) else content.read_bytes()
                        extension, size = image_header(content, f"{index + 1} of {where}", part.decode)
                        sizes.append(size)
                    paths[key].append(f"{folder}/{number:06d}{suffix}.{extension}")
                    contents[paths[key][-1]] = content
        except MissingFileError as error:
            missing.add(str(error), number + 1)
            tally.drop("missing_file", f"{where}: {error}")
            continue
        except _RefusedFileError as error:
            tell_refused(str(error))
            tally.drop("refused_file", str(error))
            continue
        except _UnsafePathError as error:
            tally.drop("unsafe_path", str(error))
            continue
        except DataError as error:
            tally.drop("unreadable_image", str(error))
            continue
        row = _repair(_record(record, paths["image"], paths["video"]), partial(list, sizes), part, tally, where)
        if row is not None:
            for path, content in contents.items():
                if isinstance(content, bytes):
                    write_whole(part.out / path, content)
                else:
                    place_whole(part.out / path, content)
            yield row
    missing.check(part, tally)


class _UnsafePathError(DataError):
    """A path that leaves the snapshot."""


class _RefusedFileError(DataError):
    """An image or a video that is too large."""


def _check_size(content: bytes | Path, kind: str, where: str) -> None:
    size = len(content) if isinstance(content, bytes) else content.stat().st_size
    if size > FILE_LIMITS[kind]:
        raise _RefusedFileError(f"{where} holds {kind} of {too_large(size, kind)}")


def tell_refused(line: str) -> None:
    """Prints that a file was refused, beside the bars."""
    tqdm.write(f"refused: {one_line(line)}", file=sys.stderr)


def _find(part: Part, given: Any, where: str) -> bytes | Path:
    """The bytes that a row holds, or the file that it names, which lies where a JSON file's images may lie."""
    if isinstance(given, bytes):
        return given
    if not isinstance(given, str):
        raise DataError(f"{where}: a file is neither bytes nor a path: {type(given).__name__}")
    unsafe = _why_unsafe(given, part.source)
    if unsafe:
        raise _UnsafePathError(f"{where}: {unsafe}")
    file = find_loose(given, part)
    if file is None:
        raise MissingFileError(given)
    return file


def is_path(name: str) -> bool:
    """Whether a file can have this name: no NUL, and no lone surrogate, half of an emoji, which UTF-8 cannot hold."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in name


def _why_unsafe(name: str, folder: Path) -> str | None:
    if not is_path(name):
        return f"no file can have the name {name!a}"
    reason = why_outside(name, folder)
    return reason and f"the path {name} {reason}"


def find_loose(name: str, part: Part) -> Path | None:
    """A file that lies unpacked in the snapshot; None where there is none."""
    folders = [base / loose for base in (part.file.parent, part.source) for loose in LOOSE]
    return next((folder / name for folder in folders if os.path.isfile(folder / name)), None)


def _video_suffix(content: bytes | Path) -> str:
    return video_extension(content) if isinstance(content, bytes) else content.suffix.lower().lstrip(".") or "mp4"


def json_records(part: Part, tally: Tally) -> Iterator[dict]:
    """The records of a JSON file, whose images were unpacked, as they are to be.

    Raises DataError at the end when images are missing, unless their rows are dropped.
    """
    prefix, folder = f"{part.repository}/{IMAGES}", part.out / part.repository / IMAGES
    missing = Missing()
    size_of = lru_cache(maxsize=1 << 16)(_decoded_size if part.decode else image_size)
    for number, record in enumerate(iter_records(part.file), start=1):
        tally.rows += 1
        where = f"{part.file} row {number}"
        names = {key: file_names(record, key) for key in FILE_KEYS}
        flat = [name for of_key in names.values() for name in of_key]
        unsafe = next(filter(None, (_why_unsafe(name, folder) for name in flat)), None)
        if unsafe:
            tally.drop("unsafe_path", f"{where}: {unsafe}")
            continue
        images = [folder / name for name in names["image"]]
        sizes = partial(_sizes, images, size_of)
        try:
            row = _repair(_record(record, names["image"], names["video"]), sizes, part, tally, where)
            if row is None:
                continue
            absent = next((name for name in flat if not os.path.isfile(folder / name)), None)
            if absent in part.refused:
                tally.drop("refused_file", f"{where}: {part.refused[absent]}")
                continue
            if absent is not None:
                missing.add(absent, number)
                tally.drop("missing_file", f"{where}: {absent}")
                continue
            sizes()
        except DataError as error:
            tally.drop("unreadable_image", f"{where}: {error}")
            continue
        for key in FILE_KEYS:
            if key in row:
                given = row[key]
                row[key] = f"{prefix}/{given}" if isinstance(given, str) else [f"{prefix}/{n}" for n in given]
        yield row
    missing.check(part, tally)


def _decoded_size(path: Path) -> tuple[int, int]:
    return open_image(path).size


def _sizes(files: list[Path], size_of: Callable[[Path], tuple[int, int]]) -> list[tuple[int, int]]:
    return [size_of(file) for file in files]


def _record(record: Any, images: list[str], videos: list[str]) -> dict:
    """A record of the same id and turns with these files, in LLaVA's form: a path, a list of paths, or no key."""
    record = record if isinstance(record, dict) else {}
    kept = {key: record[key] for key in ("id", "data_source") if not _is_nothing(record.get(key))}
    kept = {key: value if isinstance(value, str | int) else str(value) for key, value in kept.items()}
    if not is_path(str(kept.get("data_source", ""))):
        del kept["data_source"]  # of no use in training, and no file could hold it
    kept["conversations"] = _turns(record.get("conversations"))
    files = {"image": images, "video": videos}
    return kept | {key: paths if len(paths) > 1 else paths[0] for key, paths in files.items() if paths}


def _is_nothing(value: Any) -> bool:
    """null, or NaN, which pandas writes for it."""
    return value is None or value != value


def _turns(conversation: Any) -> Any:
    """Turns as {from, value}, also from {role, content} and from a text that holds them as JSON."""
    if isinstance(conversation, str):
        try:
            turns, end = decode(conversation.strip())
        except ValueError:
            return conversation  # parse_sample says what is wrong with it
        conversation = turns if end == len(conversation.strip()) else conversation
    if not isinstance(conversation, list):
        return conversation
    return [_turn(turn) for turn in conversation]


def _turn(turn: Any) -> Any:
    if not isinstance(turn, dict) or (isinstance(turn.get("from"), str) and isinstance(turn.get("value"), str)):
        return turn
    if isinstance(turn.get("role"), str) and isinstance(turn.get("content"), str):
        return {"from": turn["role"], "value": turn["content"]}
    return turn


def file_names(record: Any, key: str) -> list[str]:
    """The paths that a record gives under a key, as one or as a list."""
    given = record.get(key) if isinstance(record, dict) else None
    return [name for name in (given if isinstance(given, list) else [given]) if isinstance(name, str) and name]


def _repair(
    record: dict, image_sizes: Callable[[], list[tuple[int, int]]], part: Part, tally: Tally, where: str
) -> dict | None:
    """The record after the rules, counted; None when it is dropped."""
    try:
        parse_sample(record, where)
    except DataError as error:
        tally.drop("no_conversation", str(error))
        return None
    for rule in part.rules:
        changed = rule.apply(Row(record, image_sizes))
        if changed is None:
            tally.drop(rule.name, where)
            return None
        tally.changed[rule.name] += changed is not record
        record = changed
    try:
        sample = parse_sample(record, where)
        template_turns(sample.turns, "qwen_1_5", len(sample.images), len(sample.videos))
    except DataError as error:
        tally.drop("placeholder", f"{where}: {error}")
        return None
    return record
