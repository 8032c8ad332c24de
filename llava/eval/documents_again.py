"""The documents of a finished run, read again: for their images, and for fields that the run did not store."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from llava.arguments import shown
from llava.errors import LlavaError
from llava.eval.store import TaskRun
from llava.eval.task import data_folder, task_config
from llava.eval.two_tower.jobs import PROTOCOL

if TYPE_CHECKING:
    from datasets import Dataset

WHERE = "--data ROOT names where they lie"


def lies_here(run: TaskRun, data: Path | None) -> bool:
    """Whether the documents are read from a folder and not from the hub."""
    return data is not None or bool(run.run.get("data"))


def read_documents(run: TaskRun, data: Path | None, alone: bool) -> "Dataset":
    """All documents of the task in the order of doc_id, their images not decoded yet.

    Args:
        run: of a task.
        data: what `--data` says; None takes what the run was given.
        alone: whether the task is the only one, see data_folder.

    Raises:
        LlavaError: when they are not to be had.
    """
    from llava.eval.documents import load_documents, source_of, spec_of

    if run.run["protocol"] == PROTOCOL:
        raise LlavaError(
            f"task {run.task}: pairs of a two-tower model are not read again; what is stored of them is all"
        )
    folder = data_folder(data, run.task, alone) if data is not None else run.run.get("data")
    if folder is not None and not Path(folder).is_dir():
        raise LlavaError(f"task {run.task}: its documents are not in {folder} any more; {WHERE}")
    file = run.run.get("file")
    if file is not None and not Path(file).is_file():
        raise LlavaError(f"task {run.task}: its YAML file {file}, which names its documents, is not there any more")
    config = task_config(run.task, run.run["protocol"] or "paper", file) if file else None
    spec = spec_of(run.task, config)
    return load_documents(spec, source_of(spec, folder))


def check_same(run: TaskRun, rows: Sequence[Mapping], documents: "Dataset") -> None:
    """Raises LlavaError where a document differs from what is stored of it, or is not there.

    Args:
        run: whose rows these are.
        rows: of the samples; those without stored fields are taken as they are.
        documents: of the task, see read_documents.
    """
    from llava.eval.documents import without_images

    plain = without_images(documents)
    for row in rows:
        number = row["doc_id"]
        if number >= len(plain):
            raise LlavaError(f"task {run.task}: {len(plain)} documents, but the run was asked document {number}")
        stored, now = (_plain_facts(fields) for fields in (row.get("doc") or {}, plain[number]))
        if other := next((field for field in stored if field in now and now[field] != stored[field]), None):
            raise LlavaError(
                f"task {run.task}: document {number} is another than the run was asked: {other!r} is "
                f"{shown(str(now[other]))}, the run stored {shown(str(stored[other]))}; {WHERE}"
            )


def _plain_facts(document: Mapping) -> dict[str, str | int]:
    """The fields that no task's function changes in place, and that JSON keeps as they are."""
    return {field: value for field, value in document.items() if isinstance(value, str | int)}
