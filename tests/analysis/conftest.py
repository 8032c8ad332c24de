"""Two models of one data file, and a task's documents in the form that `llava demo make` writes."""

import io
import json

import pyarrow
import pytest
from pyarrow import parquet

from llava.fusion.configs.none import NoneConfig
from tests.data.pairs.conftest import processor, tokenizer
from tests.eval.conftest import README

__all__ = ["processor", "tokenizer"]


@pytest.fixture(scope="session")
def plain_model_dir(tmp_path_factory, make_model, make_processor):
    """A checkpoint without managers."""
    folder = tmp_path_factory.mktemp("plain_model")
    make_model(fusion=NoneConfig()).save_pretrained(folder)
    make_processor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def samples_file(tmp_path_factory, make_image):
    """Five samples of one image, two images and none; the images lie beside the file."""
    folder, records = tmp_path_factory.mktemp("samples"), []
    for index, count in enumerate((1, 0, 2, 1, 1)):
        names = [f"{index}_{number}.png" for number in range(count)]
        for number, name in enumerate(names):
            make_image(60 + 30 * index, 90 - 10 * number, index).save(folder / name)
        turns = [("human", "<image>" * count + "\nWhat?"), ("gpt", "A red car.")]
        conversation = [{"from": role, "value": text} for role, text in turns]
        records.append({"id": str(index), "image": names, "conversations": conversation})
    (folder / "samples.json").write_text(json.dumps(records))
    (folder / "text.json").write_text(json.dumps(records[1:2]))
    return folder / "samples.json"


@pytest.fixture
def digit_pages(tmp_path, make_image, monkeypatch):
    """A data set folder of four documents; HF's caches are kept out of the home folder."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    rows = []
    for index in range(4):
        png = io.BytesIO()
        make_image(60 + 30 * index, 70, index).save(png, "PNG")
        image = {"bytes": png.getvalue(), "path": None}
        rows.append({"question_id": f"{index}-place", "image": image, "question": f"Which digit is at {index}?"})
        rows[-1] |= {"answers": [str(index)], "kind": "place"}
    folder = tmp_path / "test"
    folder.mkdir()
    parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "test.parquet")
    (folder / "README.md").write_text(README)
    return folder
