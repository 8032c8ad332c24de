"""Offline twins of the benchmarks: a few documents with the real schema, and scripted models that answer them.

Every question ends in "(document N)", so that a scripted model knows what it is asked whatever the task makes of the
question.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet
from PIL import Image

from llava.eval.benchmarks import benchmark

TEXT, WHOLE, IMAGE = datasets.Value("string"), datasets.Value("int64"), datasets.Image()
TEXTS, IMAGES = datasets.List(TEXT), datasets.List(IMAGE)


@dataclass(frozen=True)
class Twin:
    """features: the schema. documents: a row each. oracle, wrong, half: three models' answers to them.

    score: what the half-right model gets, on [0, 100], computed by hand. scores: its score on each document.
    values: other entries of its results, as the harness has them. highest, lowest: what oracle and wrong model get.
    beside: other configurations of the data set, name to (split, features, rows).
    """

    task: str
    features: dict
    documents: list[dict]
    oracle: list[str]
    wrong: list[str]
    half: list[str]
    score: float
    scores: list
    values: dict[str, float] = field(default_factory=dict)
    highest: float = 100.0
    lowest: float = 0.0
    beside: dict[str, tuple] = field(default_factory=dict)


def picture(width: int, height: int, seed: int) -> Image.Image:
    """An image of noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def pictures(count: int) -> list[Image.Image]:
    """Images of different sizes."""
    return [picture(40 + 10 * index, 60 - 5 * index, index) for index in range(count)]


def write_twin(twin: Twin, folder: Path, plain: bool = False) -> Path:
    """Writes the data set as the hub has it: parquet files, named in the README's front matter.

    plain: without what the datasets library notes in parquet files, so that images are {bytes, path} structs.
    """
    known = benchmark(twin.task)
    parts = {known.config or "default": (known.split, twin.features, twin.documents), **twin.beside}
    lines = ["---", "configs:"]
    for name, (split, features, rows) in parts.items():
        file = folder / name / f"{split}.parquet"
        file.parent.mkdir(parents=True)
        table = datasets.Dataset.from_list(rows, features=datasets.Features(features)).data.table
        pyarrow.parquet.write_table(table.replace_schema_metadata(None) if plain else table, file)
        lines += [f"  - config_name: {name}", "    data_files:", f"      - split: {split}"]
        lines += [f"        path: {name}/{split}.parquet"]
    (folder / "README.md").write_text("\n".join([*lines, "---", ""]))
    return folder


def scripted(answers: list[str]) -> Callable:
    """What stands in for `Engine.generate`: answers by the number of the document that the last turn asks about."""

    def generate(engine, dialogues, **settings) -> list[str]:
        asked = [re.findall(r"\(document (\d+)\)", dialogue.turns[-1].text) for dialogue in dialogues]
        return [answers[int(numbers[-1])] for numbers in asked]

    return generate
