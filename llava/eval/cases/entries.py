"""The cases of a task as entries of the page: its documents are read again, for their images."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from llava.data.color import to_rgb
from llava.errors import LlavaError
from llava.eval.cases.choose import TaskCases
from llava.eval.cases.content import case_of
from llava.eval.cases.page import Entry, Picture
from llava.eval.cases.picture import MOST, draw_case, show_images
from llava.eval.documents import image_columns, with_readable_images, without_images
from llava.eval.documents_again import check_same, read_documents
from llava.eval.kinds import KIND, field_names, no_such_field, read_kinds
from llava.eval.store import TaskRun
from llava.eval.tiling import stored_tiling

if TYPE_CHECKING:
    from datasets import Dataset


def tilings_of(runs: Mapping[str, TaskRun]) -> dict[str, dict | None]:
    """How each run's model cuts images, as the run stored it or its folder says; None where both are gone."""
    return {name: run.run["tiling"] or stored_tiling(Path(run.run["model"])) for name, run in runs.items()}


def make_entries(
    cases: TaskCases, tilings: Mapping[str, dict | None], by: str, data: Path | None, alone: bool, folder: Path
) -> list[Entry]:
    """The entries of a task, whose PNGs are written into `folder`.

    Args:
        cases: of the task.
        tilings: see tilings_of.
        by: the field that tells kinds of question, see llava/eval/kinds.py.
        data: where documents lie, see read_documents.
        alone: whether the task is the only one.
        folder: that is there.

    Raises:
        LlavaError: when the documents are not to be had, are others than the runs were asked, or, of the only task,
            have no field `by`.
    """
    documents = _documents(cases, data, alone)
    plain, pictured = without_images(documents), with_readable_images(documents)
    fields = [plain[choice.doc_id] for choice in cases.choices]
    kinds = read_kinds(cases.task, by, fields)
    if kinds is None and by != KIND and alone:
        raise LlavaError(no_such_field(by, {cases.task: field_names(fields)}))
    entries = []
    for place, choice in enumerate(cases.choices):
        document = pictured[choice.doc_id]
        images, lost = _images([document[column] for column in image_columns(documents)])
        case = case_of(cases, choice, fields[place], kinds.of_document[place] if kinds else [])
        shown = show_images(images, tilings)
        file = f"{cases.task}-{choice.doc_id:05d}.png"
        draw_case(case, shown).save(folder / file)
        entries.append(Entry(case, [Picture.of(one) for one in shown], _note(len(images), lost), file))
    return entries


def _documents(cases: TaskCases, data: Path | None, alone: bool) -> "Dataset":
    """From where one of the runs read them. Raises the first run's LlavaError when none can."""
    faults = []
    rows = [choice.row for choice in cases.choices]
    for run in cases.runs.values():
        try:
            documents = read_documents(run, data, alone)
            check_same(run, rows, documents)
            return documents
        except LlavaError as error:
            faults.append(error)
    raise faults[0]


def _images(values: Sequence[object]) -> tuple[list[Image.Image], int]:
    """The images among a document's values, in RGB, and how many could not be read."""
    entries = [entry for value in values for entry in (value if isinstance(value, list) else [value])]
    images = [to_rgb(entry)[0] for entry in entries if isinstance(entry, Image.Image)]
    return images, len([entry for value in values if isinstance(value, list) for entry in value if entry is None])


def _note(count: int, lost: int) -> str:
    notes = [f"{lost} of {count + lost} images cannot be read"] if lost else []
    notes += [f"the first {MOST} of {count} images are shown"] if count > MOST else []
    notes += ["no image can be read of this document"] if not count and not lost else []
    return "; ".join(notes)
