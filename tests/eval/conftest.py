"""A small data set in the form that `llava demo make` writes, and HF's caches kept out of the home folder."""

import os

import pytest

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
