"""The pairs of data files as a sequence: one for every text of every row, read from the file when it is asked for.

Where a text stands is told by the arrays of the columns' own lengths: nothing here goes through rows one by one.
"""

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llava.data.pairs.answers import score_answers
from llava.data.pairs.pair import LABELS, Pair, PairKind, label_of
from llava.data.pairs.tables import PairTable, value
from llava.errors import DataError
from llava.printable import brief, one_line


class TextPlace(NamedTuple):
    """A text: the row of its file, and its number among the row's texts, both counted from 0."""

    row: int
    text: int


class PairFile:
    """The rows, ascending, that are taken of one data file.

    Args:
        opened: The file.
        kind: What its rows hold.
        rows: Those that are taken.
        set_name: Of the data set; files of one name are one data set.
    """

    def __init__(self, opened: PairTable, kind: PairKind, rows: Sequence[int] | np.ndarray, set_name: str):
        self.opened, self.kind, self.set_name = opened, kind, set_name
        self.rows = np.asarray(rows, dtype=np.int64)
        columns = (kind.texts, *kind.images)
        missing = [name for name in columns if name not in opened.table.column_names]
        if missing:
            present = ", ".join(opened.table.column_names)
            raise DataError(
                f"data file {opened.file}: {kind.name} need the columns {', '.join(columns)}; it has no "
                f"{', '.join(missing)} (it has {present})"
            )

    @property
    def file(self) -> Path:
        """The data file."""
        return self.opened.file

    @cached_property
    def counts(self) -> np.ndarray:
        """How many texts each row that is taken has."""
        column = self.opened.table.column(self.kind.texts)
        if _is_list(column.type):
            lengths = pc.list_value_length(column).fill_null(0)
        else:
            lengths = pc.is_valid(column).cast(pa.int32())
        return np.asarray(lengths.to_numpy())[self.rows].astype(np.int64)

    @cached_property
    def ends(self) -> np.ndarray:
        """Up to which number the texts of each row that is taken count."""
        return np.cumsum(self.counts)

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.rows) else 0

    @cached_property
    def image_ids(self) -> np.ndarray:
        """A number for the image of each row that is taken, from 0; rows that name one path have one number."""
        column = self.opened.table.column(self.kind.images[0])
        if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
            return np.arange(len(self.rows))
        paths = column.combine_chunks().take(pa.array(self.rows)).dictionary_encode()
        return np.asarray(pc.fill_null(paths.indices, len(paths.dictionary)).to_numpy(zero_copy_only=False))

    def place(self, number: int) -> tuple[int, TextPlace]:
        """Which of the rows that are taken the text stands in, and where in the file."""
        taken = int(np.searchsorted(self.ends, number, side="right"))
        first = int(self.ends[taken] - self.counts[taken])
        return taken, TextPlace(int(self.rows[taken]), number - first)

    def images(self, row: int) -> tuple[bytes | str | None, ...]:
        """The images of a row of the file: bytes or paths."""
        return tuple(_image(self.opened.table.column(name)[row]) for name in self.kind.images)

    def fault(self, row: int) -> str | None:
        """What is wrong with the row's record, as the file's reader says; None for nothing."""
        fault = value(self.opened.column("fault"), row)
        return None if fault is None else str(fault)

    def texts(self, row: int) -> list:
        """The texts of a row of the file, as they are stored."""
        return _as_list(self.opened.table.column(self.kind.texts), row)

    def truths(self, name: str, row: int) -> list | None:
        """What a column says of each text of a row; None where it says nothing."""
        column = self.opened.column(name)
        if column is None or (said := value(column, row)) is None:
            return None
        return said if _is_list(self.opened.table.column(self.kind.texts).type) else [said]

    def origin(self, place: TextPlace) -> str:
        """File, row and text, counted from 1."""
        return f"{self.file} row {place.row + 1} {self.kind.words} {place.text + 1}"

    def pair(self, place: TextPlace, image_index: int, with_images: bool = True) -> Pair:
        """The pair of one text.

        Args:
            place: Of the text.
            image_index: The image's number in the store.
            with_images: Whether the images are read; without, the pair has none.

        Raises:
            DataError: It has no image, no text, or what is said of it is of another form than it should be.
        """
        origin = self.origin(place)
        if fault := self.fault(place.row):
            raise DataError(f"{origin}: {fault}")
        images = self.images(place.row) if with_images else ()
        if None in images:
            lacking = [name for name, image in zip(self.kind.images, images) if image is None]
            raise DataError(f"{origin}: a {self.kind.words} without image: {', '.join(lacking)} is empty")
        text = self.texts(place.row)[place.text]
        text = text[-1] if isinstance(text, list) and text else text  # of [premise, hypothesis] the hypothesis
        if not isinstance(text, str) or not text.strip():
            raise DataError(f"{origin}: an image without {self.kind.words}: found {brief(text)}")
        name = value(self.opened.column("id"), place.row)
        return Pair(
            text=text,
            images=tuple(image for image in images if image is not None),
            image_index=image_index,
            origin=origin,
            id=f"{self.file.name}:{place.row + 1}" if name is None else str(name),
            label=self._label(place, origin),
            question_id=self._of_text("question_id", place, origin),
            **self._answers(place, origin),
        )

    def _of_text(self, name: str, place: TextPlace, origin: str) -> Any:
        of_row = self.truths(name, place.row)
        if not of_row:  # an empty list is what ViLT's files have where nothing is known
            return None
        if not isinstance(of_row, list) or len(of_row) != len(self.texts(place.row)):
            count = len(of_row) if isinstance(of_row, list) else 1
            raise DataError(f"{origin}: {count} {name} for {len(self.texts(place.row))} texts")
        return of_row[place.text]

    def _label(self, place: TextPlace, origin: str) -> int | None:
        if self.kind.name not in LABELS:
            return None
        for name in self.kind.truths:
            said = self._of_text(name, place, origin)
            said = said[0] if isinstance(said, list) and len(said) == 1 else said
            if said is not None:
                label = label_of(self.kind.name, said)
                if label is None:
                    labels = ", ".join(LABELS[self.kind.name])
                    raise DataError(f"{origin}: {name} has {brief(said)}, expected one of {labels}")
                return label
        return None

    def _answers(self, place: TextPlace, origin: str) -> dict[str, tuple | None]:
        if self.kind.name != "questions":
            return {}
        answers = self._of_text("answers", place, origin)
        if answers is None:
            return {}
        answers = [answers] if isinstance(answers, str) else answers
        scores = self._of_text("answer_scores", place, origin)
        if scores is None:
            answers, scores = score_answers(answers)
        if len(answers) != len(scores):
            raise DataError(f"{origin}: {len(scores)} answer_scores for {len(answers)} answers")
        return {"answers": tuple(answers), "scores": tuple(map(float, scores))}


class PairStore(Sequence[Pair]):
    """The pairs of several files, one file behind the other.

    Args:
        files: What is taken of each.
    """

    def __init__(self, files: Sequence[PairFile]):
        self.files = list(files)
        self.ends = np.cumsum([len(file) for file in files], dtype=np.int64)

    def __reduce__(self) -> tuple[Callable, tuple]:
        return PairStore, (self.files,)

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def __getitem__(self, position: int) -> Pair:  # type: ignore[override]
        return self._pair(position, with_images=True)

    def text(self, position: int) -> Pair:
        """The pair without its images, which are not read."""
        return self._pair(position, with_images=False)

    def where(self, position: int) -> tuple[Path, TextPlace]:
        """The file of a pair and where it stands in it."""
        file, _, place = self._place(position)
        return self.files[file].file, place

    def image_index(self, position: int) -> int:
        """The number of the image of a pair, which is not read."""
        file, taken, _ = self._place(position)
        return self._image_index(file, taken)

    def image_indices(self) -> np.ndarray:
        """The number of the image of every pair, (pairs,)."""
        firsts = self._first_images.tolist()
        return np.concatenate(
            [first + np.repeat(file.image_ids, file.counts) for first, file in zip(firsts, self.files)]
        )

    def image(self, image_index: int) -> tuple[bytes | str, str]:
        """The first image of that number, bytes or a path, and where it stands. DataError where there is none."""
        file = int(np.searchsorted(self._first_images, image_index, side="right")) - 1
        of_file = self.files[file]
        row = int(of_file.rows[self._first_rows[file][image_index - int(self._first_images[file])]])
        origin = f"{of_file.file} row {row + 1}"
        image = None if of_file.fault(row) else of_file.images(row)[0]
        if image is None:
            raise DataError(f"{origin}: {of_file.fault(row) or 'a row without image'}")
        return image, origin

    def other_image(self, position: int, draw: float) -> int:
        """The number of another image of the same data set. draw: a number in [0, 1) that decides which."""
        name = self.files[self._place(position)[0]].set_name
        spans = self._spans[name]
        images = sum(count for _, count in spans)
        if images < 2:
            raise DataError(f"data set {name} has {images} image: there is no other for image-text matching")
        chosen = int(draw * (images - 1))
        return _nth(spans, chosen + (chosen >= _rank(spans, self.image_index(position))))

    @property
    def num_images(self) -> int:
        """How many images there are; files do not share any."""
        return int(self._first_images[-1] + len(self._first_rows[-1])) if self.files else 0

    @property
    def kind(self) -> PairKind:
        """What the rows of all files hold."""
        return self.files[0].kind

    def _pair(self, position: int, with_images: bool) -> Pair:
        file, taken, place = self._place(position)
        return self.files[file].pair(place, self._image_index(file, taken), with_images)

    def _place(self, position: int) -> tuple[int, int, TextPlace]:
        """The number of a pair's file, which of the rows that are taken of it, and where in the file."""
        if not 0 <= position < len(self):
            raise IndexError(f"pair {position} of {len(self)}")
        file = int(np.searchsorted(self.ends, position, side="right"))
        return file, *self.files[file].place(position - (int(self.ends[file]) - len(self.files[file])))

    def _image_index(self, file: int, taken: int) -> int:
        return int(self._first_images[file] + self.files[file].image_ids[taken])

    @cached_property
    def _first_rows(self) -> list[np.ndarray]:
        """Of each file, which of its taken rows has each image first."""
        return [np.unique(file.image_ids, return_index=True)[1] for file in self.files]

    @cached_property
    def _first_images(self) -> np.ndarray:
        """The number of the first image of each file."""
        return np.cumsum([0, *map(len, self._first_rows[:-1])])

    @cached_property
    def _spans(self) -> dict[str, list[tuple[int, int]]]:
        """Of each data set the numbers of its images: (first, how many) of each file."""
        spans: dict[str, list[tuple[int, int]]] = {}
        for file, first, rows in zip(self.files, self._first_images.tolist(), self._first_rows):
            spans.setdefault(file.set_name, []).append((first, len(rows)))
        return spans


def _rank(spans: list[tuple[int, int]], image_index: int) -> int:
    """The place of an image among those of its data set."""
    return sum(min(max(image_index - first, 0), count) for first, count in spans)


def _nth(spans: list[tuple[int, int]], place: int) -> int:
    for first, count in spans:
        if place < count:
            return first + place
        place -= count
    raise IndexError(place)


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind)


def _as_list(column: pa.ChunkedArray, row: int) -> list:
    said = column[row].as_py()
    return said if isinstance(said, list) else [] if said is None else [said]


def _image(scalar: Any) -> bytes | str | None:
    """Bytes, or a path; of {bytes, path} the bytes where there are some. None for what is empty."""
    held = scalar.as_py()
    if isinstance(held, dict):
        held = held.get("bytes") or held.get("path")
    if held is not None and not isinstance(held, bytes | str):
        raise DataError(f"an image must be bytes or a path, found {one_line(type(held).__name__)}")
    return held or None
