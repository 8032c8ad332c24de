"""A task's documents, from a local folder or from the hub, checked and with their images, before any model is loaded.

`--data ROOT` has one folder per task, ROOT/TASK/, which holds what `datasets.load_dataset` reads (parquet files, and a
README.md whose front matter names configurations and splits) or what `DatasetDict.save_to_disk` writes. The split and
the configuration are the task's (see DataSpec); a lone configuration may have any name. Images may be Image features,
or plain {bytes, path} structs as other writers of parquet leave them; GQA's may lie in a configuration of their own.
"""

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import datasets
from datasets import Audio, Dataset, DatasetDict, Image, List
from datasets.exceptions import DatasetsError
from PIL.Image import DecompressionBombError
from pyarrow import ArrowInvalid, parquet

from llava.constants import DATA_OPTION
from llava.data.color import FORMATS
from llava.errors import LlavaError
from llava.eval.benchmarks import benchmark

Loaded = TypeVar("Loaded")
OWN_SPLIT = "test"  # what the tasks read that are no benchmarks
SAVED = "dataset_dict.json"  # marks a folder that save_to_disk wrote
# What lmms-eval reads of a task's dataset_kwargs before it hands the others to the datasets library.
HARNESS_OPTIONS = (
    *("From_YouTube", "video", "builder_script", "create_link", "force_download", "force_unzip"),
    *("local_files_only", "max_retries", "num_proc", "cache_dir"),
)


@dataclass(frozen=True)
class DataSpec:
    """Which documents a task reads.

    dataset, config, options: where they lie when no folder is given, as lmms-eval's dataset_path, dataset_name and
    dataset_kwargs; dataset None: nowhere. columns: those that must be there. images: the configuration that holds the
    images where the documents only name them, see Benchmark. process: the task's own function over all documents.
    """

    task: str
    split: str
    dataset: str | None = None
    config: str | None = None
    options: Mapping | None = None
    columns: tuple[str, ...] = ()
    images: str | None = None
    process: Callable[[Dataset], Dataset] | None = None


def spec_of(task: str, config: Mapping | None = None) -> DataSpec:
    """The documents of a task: of a benchmark as its row says, else as its YAML does.

    Args:
        task: its name.
        config: what its YAML file says, for a task that is none of ours.

    Raises:
        LlavaError: when the YAML names no data set or no split.
    """
    if row := benchmark(task):
        return DataSpec(task, row.split, row.dataset, row.config, None, row.columns, row.images)
    if config is None:
        return DataSpec(task, OWN_SPLIT)
    split = config.get("test_split") or config.get("validation_split")
    if not config.get("dataset_path") or not split:
        lacking = "split (test_split or validation_split)" if config.get("dataset_path") else "data set (dataset_path)"
        raise LlavaError(f"task {task}: its YAML file names no {lacking}")
    options = {key: value for key, value in (config.get("dataset_kwargs") or {}).items() if key != "token"}
    return DataSpec(
        task,
        split,
        dataset=config["dataset_path"],
        config=config.get("dataset_name"),
        options=options or None,
        process=config.get("process_docs"),
    )


def is_dataset_folder(folder: Path) -> bool:
    """Whether `folder` itself, not its subfolders, looks like a data set."""
    return any((folder / name).is_file() for name in ("README.md", SAVED)) or any(folder.glob("*.parquet"))


def source_of(spec: DataSpec, data: str | None) -> dict:
    """Where the harness is to load the documents from: dataset_path, dataset_name, dataset_kwargs.

    Args:
        spec: which documents.
        data: a local folder, or None for the task's own place.

    Raises:
        LlavaError: when there is none, or when the folder has several configurations and none of the right name.
    """
    if data is None:
        if spec.dataset is None:
            raise LlavaError(f"task {spec.task}: is on no hub; name its data set with {DATA_OPTION}")
        return {"dataset_path": spec.dataset, "dataset_name": spec.config, "dataset_kwargs": spec.options}
    folder = Path(data).resolve()
    if not is_dataset_folder(folder):
        raise LlavaError(f"{data}: not a dataset folder (no README.md that names its files, no parquet files)")
    if (folder / SAVED).is_file():
        return {"dataset_path": str(folder), "dataset_name": None, "dataset_kwargs": {"load_from_disk": True}}
    names = _tried(spec.task, data, datasets.get_dataset_config_names, str(folder))
    wanted = spec.config or "default"
    if len(names) > 1 and wanted not in names:
        raise LlavaError(f"{data}: has no configuration {wanted!r} (found: {', '.join(names)})")
    name = wanted if wanted in names else names[0]
    return {"dataset_path": str(folder), "dataset_name": name, "dataset_kwargs": {"cache_dir": _cache_of(folder)}}


def _cache_of(folder: Path) -> str:
    """Where the data set is cached: apart for each folder and each state of its files.

    The datasets library tells folders apart by their last name, and takes an older cache for files changed in place.
    """
    caches = Path(os.environ.get("HF_DATASETS_CACHE") or datasets.config.HF_DATASETS_CACHE)
    return str(caches / f"llava_eval_{state_of(folder)}")


def state_of(folder: Path) -> str:
    """A digest of the folder's files: their paths, sizes and times of change."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    state = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return hashlib.sha256(repr(state).encode()).hexdigest()[:16]


def load_documents(spec: DataSpec, source: Mapping) -> Dataset:
    """The split that the task reads, as the task's own function leaves it.

    The harness loads the same data set again, from the cache that this fills. What it cannot load it would try for five
    times, and then hide the cause.

    Raises:
        LlavaError: when the split or a column is missing, naming what there is, and for documents to be listened to.
    """
    task, place = spec.task, source["dataset_path"]
    splits = _load(task, source)
    if spec.split not in splits:
        raise LlavaError(f"task {task}: {place} has no split {spec.split!r} (found: {', '.join(splits)})")
    documents = _decoding(splits[spec.split])
    if spec.images is not None and "image" not in documents.column_names:
        documents = _with_images(documents, spec, source)
    missing = [column for column in spec.columns if column not in documents.column_names]
    if missing:
        columns = ", ".join(documents.column_names)
        raise LlavaError(f"task {task}: {place} has no column {', '.join(map(repr, missing))} (found: {columns})")
    if _is_heard(documents):
        raise LlavaError(f"task {task}: its documents are audio; this model reads text, images and videos")
    return documents if spec.process is None else spec.process(documents)


def _is_heard(documents: Dataset) -> bool:
    """Whether there is something to hear in the documents and nothing to see."""
    kinds = [feature.feature if isinstance(feature, List) else feature for feature in documents.features.values()]
    return any(isinstance(kind, Audio) for kind in kinds) and not any(isinstance(kind, Image) for kind in kinds)


def _load(task: str, source: dict) -> DatasetDict:
    place, name, options = source["dataset_path"], source["dataset_name"], source["dataset_kwargs"] or {}
    if _is_saved(source):
        return _tried(task, place, datasets.load_from_disk, place)
    if options.keys() & {"video", "From_YouTube"}:  # the harness unpacks the files, below a cache of its own
        options = {key: value for key, value in options.items() if key not in HARNESS_OPTIONS}
    return _tried(task, place, datasets.load_dataset, place, name, **options)


def _is_saved(source: dict) -> bool:
    return "load_from_disk" in (source["dataset_kwargs"] or {})


def _tried(task: str, place: str, load: Callable[..., Loaded], *arguments: Any, **options: Any) -> Loaded:
    try:
        return load(*arguments, **options)
    except (DatasetsError, OSError, ValueError) as error:
        if _is_empty(Path(place)):  # which the datasets library cannot read
            raise LlavaError(f"task {task}: {place} has no documents") from error
        cause = " ".join(str(error.__cause__ or error).split())
        advice = "" if Path(place).exists() else f"; a local copy can be named with {DATA_OPTION}"
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
    return documents.remove_columns(image_columns(documents))


def with_readable_images(documents: Dataset) -> Dataset:
    """`documents`, where an image that cannot be read is None, so that all others can be gone through."""
    columns = image_columns(documents)
    for column in columns:
        listed = isinstance(documents.features[column], List)
        documents = documents.cast_column(column, List(Image(decode=False)) if listed else Image(decode=False))

    def read(batch: dict) -> dict:
        return batch | {column: [_readable(value) for value in batch[column]] for column in columns}

    return documents.with_transform(read)


def _readable(value: Any) -> Any:
    """A file {bytes, path} as an image, None where it cannot be read; so for each entry of a list."""
    if isinstance(value, list):
        return [_readable(entry) for entry in value]
    try:
        image = value and Image().decode_example(value)
        return image if image and image.format in FORMATS else None
    except (OSError, ValueError, SyntaxError, DecompressionBombError):  # what Pillow raises on broken files
        return None


def image_columns(documents: Dataset) -> list[str]:
    """The columns that hold images or lists of images."""

    def holds_images(feature: Any) -> bool:
        return isinstance(feature, Image) or (isinstance(feature, List) and isinstance(feature.feature, Image))

    return [column for column, feature in documents.features.items() if holds_images(feature)]


def _is_image_struct(feature: Any) -> bool:
    return isinstance(feature, dict) and set(feature) == {"bytes", "path"}


def _with_images(documents: Dataset, spec: DataSpec, source: Mapping) -> Dataset:
    """The documents with their images, which lie once each in another configuration of the same data set."""
    task, place = spec.task, source["dataset_path"]
    if "imageId" not in documents.column_names or _is_saved(source):
        raise LlavaError(f"task {task}: {place} has no column 'image' (found: {', '.join(documents.column_names)})")
    splits = _load(task, {**source, "dataset_name": spec.images})
    images = _decoding(next(iter(splits.values())))
    place_of = {identifier: index for index, identifier in enumerate(images["id"])}
    lost = [identifier for identifier in documents["imageId"] if identifier not in place_of]
    if lost:
        raise LlavaError(f"task {task}: {place} has no image {lost[0]!r} in {spec.images} ({len(lost)} missing)")
    matching = images.select([place_of[identifier] for identifier in documents["imageId"]])
    return datasets.concatenate_datasets([documents, matching.select_columns(["image"])], axis=1)
