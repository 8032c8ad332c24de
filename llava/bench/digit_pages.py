"""The digit pages of llava/demo as the bench takes them: one mixture to train on, one held out, a test."""

import io
from collections.abc import Iterator
from pathlib import Path

import yaml

from llava.bench.entry import HELD_OUT, LANGUAGE_MODEL, TRAIN, VISION_TOWER, DataSet, Parts, Question

SEED = 0  # of the pages and of the parts: they are the same for every run


def make_data(folder: Path, samples: int, held_out: int, documents: int) -> None:
    """Pages with `samples` conversations to train on, `held_out` others, and `documents` test pages of other digits."""
    from llava.data.json_rows import iter_records
    from llava.demo.digit_pages import DIGIT_PAGES
    from llava.demo.mixture import write_mixture

    write_mixture(folder, DIGIT_PAGES, captions=1, pages=samples + held_out, test_pages=documents, seed=SEED)
    first, second = "stage1_5.json", "stage2.json"
    rows = sum(1 for _ in iter_records(folder / second))
    mixtures = {TRAIN: [(first, "all"), (second, f"first:{rows - held_out}")], HELD_OUT: [(second, f"end:{held_out}")]}
    for name, entries in mixtures.items():
        listed = [{"json_path": path, "sampling_strategy": strategy} for path, strategy in entries]
        (folder / name).write_text(yaml.safe_dump({"datasets": listed}))


def make_parts(folder: Path, steps: int) -> None:
    """The tiny tower and language model of the demonstration, each pretrained for so many steps."""
    from llava.demo.pretrain import pretrain_language_model, pretrain_tower

    tower = pretrain_tower(folder / VISION_TOWER, steps, seed=SEED)
    language_model = pretrain_language_model(folder / LANGUAGE_MODEL, steps, seed=SEED)
    print(f"vision tower: {tower:.1%} of held-out digits labelled right")
    print(f"language model: {language_model:.1%} of answer tokens right on text pages")


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


ENTRY = DataSet(
    make=make_data,
    questions=questions,
    questions_per_document=2,
    max_new_tokens=16,
    sample_size=5000,
    parts={
        "tiny": Parts(
            make=make_parts,
            recipe="scripts/bench/digit_pages-tiny.yaml",
            steps=600,
            size=3_000_000,
            sections={"manager": {"interval": 1}},  # a language model of 6 layers has as many managers as one of 24
        )
    },
)
