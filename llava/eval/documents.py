"""A task's documents, from a local folder or from the hub, checked and with their images, before any model is loaded.

`--data ROOT` has one folder per task, ROOT/TASK/, which holds what `datasets.load_dataset` reads (parquet files, and a
README.md whose front matter names configurations and splits) or what `DatasetDict.save_to_disk` writes. The split and
the configuration are the benchmark's (llava/eval/benchmarks.py: split, config); a lone configuration may have any name.
GQA's images lie in a configuration `testdev_balanced_images` (columns id, image) or in a column `image`. Images may be
Image features, or plain {bytes, path} structs as other writers of parquet leave them.
"""

import hashlib
import os
from pathlib import Path

import datasets
from datasets import Dataset, DatasetDict, Image, List
from datasets.exceptions import DatasetsError
from PIL.Image import DecompressionBombError
from pyarrow import ArrowInvalid, parquet

from llava.errors import LlavaError
from llava.eval.benchmarks import benchmark

OWN_SPLIT = "test"  # what the tasks read that are no benchmarks
SAVED = "dataset_dict.json"  # marks a folder that save_to_disk wrote
GQA_IMAGES = "testdev_balanced_images"  # the configuration beside GQA's questions


def is_dataset_folder(folder: Path) -> bool:
    """Whether `folder` itself, not its subfolders, looks like a data set."""
    return any((folder / name).is_file() for name in ("README.md", SAVED)) or any(folder.glob("*.parquet"))


def source_of(task: str, data: str | None) -> dict:
    """Where the harness is to load the task's data set from: dataset_path, dataset_name, dataset_kwargs.

    data: a local folder, or None for the benchmark's place on the hub. Raises LlavaError when there is none, or when
    the folder has several configurations and none of the benchmark's name.
    """
    known = benchmark(task)
    if data is None:
        if known is None:
            raise LlavaError(f"task {task}: is on no hub; name its data set with --data")
        return {"dataset_path": known.dataset, "dataset_name": known.config, "dataset_kwargs": None}
    folder = Path(data).resolve()
    if not is_dataset_folder(folder):
        raise LlavaError(f"{data}: not a dataset folder (no README.md that names its files, no parquet files)")
    if (folder / SAVED).is_file():
        return {"dataset_path": str(folder), "dataset_name": None, "dataset_kwargs": {"load_from_disk": True}}
    names = _tried(task, data, datasets.get_dataset_config_names, str(folder))
    wanted = known.config if known and known.config else "default"
    if len(names) > 1 and wanted not in names:
        raise LlavaError(f"{data}: has no configuration {wanted!r} (found: {', '.join(names)})")
    name = wanted if wanted in names else names[0]
    return {"dataset_path": str(folder), "dataset_name": name, "dataset_kwargs": {"cache_dir": _cache_of(folder)}}


def _cache_of(folder: Path) -> str:
    """Where the data set is cached: apart for each folder and each state of its files.

    The datasets library tells folders apart by their last name, and takes an older cache for files changed in place.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    state = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    caches = Path(os.environ.get("HF_DATASETS_CACHE") or datasets.config.HF_DATASETS_CACHE)
    return str(caches / f"llava_eval_{hashlib.sha256(repr(state).encode()).hexdigest()[:16]}")


def load_documents(task: str, source: dict) -> Dataset:
    """The split that the task reads. Raises LlavaError when it or a column is missing, naming what there is.

    The harness loads the same data set again, from the cache that this fills. What it cannot load it would try for five
    times, and then hide the cause.
    """
    place = source["dataset_path"]
    known = benchmark(task)
    split = known.split if known else OWN_SPLIT
    splits = _load(task, source)
    if split not in splits:
        raise LlavaError(f"task {task}: {place} has no split {split!r} (found: {', '.join(splits)})")
    documents = _decoding(splits[split])
    if task == "gqa" and "image" not in documents.column_names:
        documents = _with_gqa_images(documents, source)
    missing = [column for column in known.columns if column not in documents.column_names] if known else []
    if missing:
        found = ", ".join(documents.column_names)
        raise LlavaError(f"task {task}: {place} has no column {', '.join(map(repr, missing))} (found: {found})")
    return documents


def _load(task: str, source: dict) -> DatasetDict:
    place, name, options = source["dataset_path"], source["dataset_name"], source["dataset_kwargs"] or {}
    if _is_saved(source):
        return _tried(task, place, datasets.load_from_disk, place)
    return _tried(task, place, datasets.load_dataset, place, name, **options)


def _is_saved(source: dict) -> bool:
    return "load_from_disk" in (source["dataset_kwargs"] or {})


def _tried(task: str, place: str, load, *arguments, **options):
    try:
        return load(*arguments, **options)
    except (DatasetsError, OSError, ValueError) as error:
        if _is_empty(Path(place)):  # which the datasets library cannot read
            raise LlavaError(f"task {task}: {place} has no documents") from error
        cause = " ".join(str(error.__cause__ or error).split())
        advice = "" if Path(place).exists() else "; a local copy can be named with --data"
        raise LlavaError(f"task {task}: the data set {place} cannot be loaded ({cause}){advice}") from error


def _is_empty(folder: Path) -> bool:
    """Whether the folder has parquet files and none has a row."""
    try:
        rows = [parquet.read_metadata(file).num_rows for file in folder.rglob("*.parquet")]
    except (OSError, ArrowInvalid):  # damaged files are another matter
        return False
    return bool(rows) and not any(rows)


def _decoding(documents: Dataset) -> Dataset:
    """`documents` with {bytes, path} structs, and lists of them, read as images."""
    for column, feature in documents.features.items():
        if _is_image_struct(feature):
            documents = documents.cast_column(column, Image())
        elif isinstance(feature, List) and _is_image_struct(feature.feature):
            documents = documents.cast_column(column, List(Image()))
    return documents


def without_images(documents: Dataset) -> Dataset:
    """`documents` without the columns that hold images or lists of images."""
    return documents.remove_columns(_image_columns(documents))


def with_readable_images(documents: Dataset) -> Dataset:
    """`documents`, where an image that cannot be read is None, so that all others can be gone through."""
    columns = _image_columns(documents)
    for column in columns:
        listed = isinstance(documents.features[column], List)
        documents = documents.cast_column(column, List(Image(decode=False)) if listed else Image(decode=False))

    def read(batch: dict) -> dict:
        return batch | {column: [_readable(value) for value in batch[column]] for column in columns}

    return documents.with_transform(read)


def _readable(value):
    """A file {bytes, path} as an image, None where it cannot be read; so for each entry of a list."""
    if isinstance(value, list):
        return [_readable(entry) for entry in value]
    try:
        return value and Image().decode_example(value)
    except (OSError, ValueError, SyntaxError, DecompressionBombError):  # what Pillow raises on broken files
        return None


def _image_columns(documents: Dataset) -> list[str]:
    def holds_images(feature) -> bool:
        return isinstance(feature, Image) or (isinstance(feature, List) and isinstance(feature.feature, Image))

    return [column for column, feature in documents.features.items() if holds_images(feature)]


def _is_image_struct(feature) -> bool:
    return isinstance(feature, dict) and set(feature) == {"bytes", "path"}


def _with_gqa_images(documents: Dataset, source: dict) -> Dataset:
    """GQA's questions with their images, which lie once each in another configuration of the same data set."""
    place = source["dataset_path"]
    if "imageId" not in documents.column_names or _is_saved(source):
        raise LlavaError(f"task gqa: {place} has no column 'image' (found: {', '.join(documents.column_names)})")
    splits = _load("gqa", {**source, "dataset_name": GQA_IMAGES})
    images = _decoding(next(iter(splits.values())))
    place_of = {identifier: index for index, identifier in enumerate(images["id"])}
    lost = [identifier for identifier in documents["imageId"] if identifier not in place_of]
    if lost:
        raise LlavaError(f"task gqa: {place} has no image {lost[0]!r} in {GQA_IMAGES} ({len(lost)} missing)")
    matching = images.select([place_of[identifier] for identifier in documents["imageId"]])
    return datasets.concatenate_datasets([documents, matching.select_columns(["image"])], axis=1)
