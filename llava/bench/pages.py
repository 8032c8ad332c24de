"""Pages of llava/demo as the bench takes them: captions and a mixture to train on, one held out, a test."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from llava.bench.entry import CAPTIONS, HELD_OUT, TRAIN, Question

if TYPE_CHECKING:
    from llava.demo.pages import Content

SEED = 0  # of the pages and of the parts: they are the same for every run


def write_pages(content: "Content", folder: Path, captions: int, samples: int, held_out: int, documents: int) -> None:
    """`captions` and pages with `samples` conversations to train on, `held_out` others, and `documents` test pages."""
    from llava.data.json_rows import iter_records
    from llava.demo.mixture import write_mixture

    write_mixture(folder, content, captions, samples + held_out, documents, SEED)
    first, second = "stage1_5.json", "stage2.json"
    rows = sum(1 for _ in iter_records(folder / second))
    mixtures = {
        CAPTIONS: [("stage1.json", "all")],
        TRAIN: [(first, "all"), (second, f"first:{rows - held_out}")],
        HELD_OUT: [(second, f"end:{held_out}")],
    }
    for name, entries in mixtures.items():
        listed = [{"json_path": path, "sampling_strategy": strategy} for path, strategy in entries]
        (folder / name).write_text(yaml.safe_dump({"datasets": listed}))


def questions(folder: Path) -> Iterator[Question]:
    """Of the test; a page is a document."""
    from PIL import Image
    from pyarrow import parquet

    from llava.data.schema import Dialogue, Turn

    for row in parquet.read_table(folder / "test" / "test.parquet").to_pylist():
        page = Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB")
        dialogue = Dialogue([Turn("human", row["question"])], [page])
        page_number = row["question_id"].partition("-")[0]
        yield Question(row["question_id"], page_number, row["kind"], tuple(row["answers"]), dialogue)
