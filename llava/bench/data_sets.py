"""The data sets of the bench. One more is a file like digit_pages.py, a line here and a recipe in scripts/bench."""

from llava.arguments import unknown
from llava.bench import digit_pages, text_pages
from llava.bench.entry import DataSet, Parts
from llava.errors import LlavaError

DATA_SETS: dict[str, DataSet] = {
    "digit_pages": digit_pages.ENTRY,
    "text_pages": text_pages.ENTRY,
    "text_pages_small": text_pages.ENTRY_SMALL,
}


def data_set(name: str) -> DataSet:
    """The data set of this name. Raises LlavaError for a name that none has."""
    if name not in DATA_SETS:
        raise LlavaError(f"--data: {unknown('data set', name, list(DATA_SETS))}")
    return DATA_SETS[name]


def parts_of(data: str, parts: str) -> Parts:
    """The parts of this name for a data set. Raises LlavaError for a name that it does not have."""
    entry = data_set(data)
    if parts not in entry.parts:
        raise LlavaError(f"--parts of {data}: {unknown('parts', parts, list(entry.parts))}")
    return entry.parts[parts]
