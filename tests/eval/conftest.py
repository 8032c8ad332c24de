"""A small data set in the form that `llava demo make` writes, and HF's caches kept out of the home folder."""

import os

import pytest
import torch

README = """\
---
configs:
  - config_name: default
    data_files:
      - split: test
        path: "*.parquet"
---
"""
KINDS = ("place", "read", "count", "compare")


@pytest.fixture(scope="session", autouse=True)
def _private_caches(tmp_path_factory):
    os.environ["HF_DATASETS_CACHE"] = str(tmp_path_factory.mktemp("datasets_cache"))


@pytest.fixture(scope="session")
def digit_pages(tmp_path_factory, make_image):
    """A data set folder of 10 documents, with pages of different sizes and accepted answers "0" to "9"."""
    import datasets

    folder = tmp_path_factory.mktemp("digit_pages") / "test"
    folder.mkdir()
    rows = [
        {
            "question_id": f"q{index}",
            "image": make_image(60 + 30 * (index % 3), 120 - 20 * (index % 4), index),
            "question": f"What is at place {index}?" + " Look well." * (index % 2),
            "answers": [str(index), f"the {index}"],
            "kind": KINDS[index % 4],
        }
        for index in range(10)
    ]
    features = datasets.Features(
        {
            "question_id": datasets.Value("string"),
            "image": datasets.Image(),
            "question": datasets.Value("string"),
            "answers": datasets.List(datasets.Value("string")),
            "kind": datasets.Value("string"),
        }
    )
    datasets.Dataset.from_list(rows, features=features).to_parquet(folder / "test.parquet")
    (folder / "README.md").write_text(README)
    return folder


@pytest.fixture(scope="session")
def lively_model_dir(tmp_path_factory, make_model, make_processor):
    """A model whose answers depend on what it is asked and shown; fresh weights repeat one letter to everything."""
    folder, model = tmp_path_factory.mktemp("lively_model"), make_model()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.copy_(torch.randn_like(parameter) * parameter.shape[-1] ** -0.5)
    model.save_pretrained(folder)
    make_processor().save_pretrained(folder)
    return folder
