"""Documents from disk: layouts that are read, and what is said of those that cannot be."""

import time

import datasets
import pytest

from llava.errors import LlavaError
from llava.eval.documents import load_documents, source_of, spec_of
from llava.eval.task import build_task, task_config

TEXT = datasets.Value("string")
FRONT = "---\nconfigs:\n{configs}---\n"
CONFIG = "  - config_name: {name}\n    data_files:\n      - split: {split}\n        path: {file}\n"


def load(task, folder):
    spec = spec_of(task)
    return load_documents(spec, source_of(spec, None if folder is None else str(folder)))


@pytest.fixture
def write(tmp_path, make_image):
    """A function: parquet files, given as (configuration, split, columns), to a data set folder with a README."""

    def write(*parts, folder=tmp_path / "data"):
        folder.mkdir(exist_ok=True)
        configs = ""
        for number, (name, split, columns) in enumerate(parts):
            features = {column: _feature(values) for column, values in columns.items()}
            data = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
            data.to_parquet(folder / f"{number}.parquet")
            configs += CONFIG.format(name=name, split=split, file=f"{number}.parquet")
        (folder / "README.md").write_text(FRONT.format(configs=configs))
        return folder

    return write


def _feature(values):
    return TEXT if all(isinstance(value, str) for value in values) else datasets.Image()


@pytest.fixture
def realworldqa(make_image):
    return {"question": ["Left? (document 0)"], "answer": ["Yes"], "image": [make_image(9, 8)]}


def test_a_lone_configuration_may_have_any_name(write, realworldqa):
    documents = load("realworldqa", write(("mine", "test", realworldqa)))
    assert documents[0]["image"].size == (9, 8)


def test_of_several_configurations_the_benchmarks_own_is_taken(write, make_image):
    columns = {"question": ["Who?"], "answers": ["I"], "image": [make_image()]}
    other = columns | {"question": ["What?"]}
    folder = write(("DocVQA", "validation", columns), ("InfographicVQA", "validation", other))
    assert load("docvqa_val", folder)[0]["question"] == "Who?"
    assert load("infovqa_val", folder)[0]["question"] == "What?"
    with pytest.raises(LlavaError, match=r"has no configuration 'ScienceQA-IMG' \(found: DocVQA, InfographicVQA\)"):
        source_of(spec_of("scienceqa_img"), str(folder))


def test_parquet_without_a_readme_and_what_was_saved_to_disk(write, realworldqa, tmp_path):
    folder = write(("default", "test", realworldqa))
    (folder / "README.md").unlink()
    (folder / "0.parquet").rename(folder / "test-00000.parquet")
    documents = load("realworldqa", folder)
    assert documents[0]["answer"] == "Yes"
    datasets.DatasetDict({"test": documents}).save_to_disk(tmp_path / "saved")
    source = source_of(spec_of("realworldqa"), str(tmp_path / "saved"))
    documents = load_documents(spec_of("realworldqa"), source)
    task = build_task("realworldqa", task_config("realworldqa", "paper"), source, documents, simple=False)
    assert task.doc_to_text(task.test_docs()[0]) == "Left? (document 0)"


def test_files_changed_in_place_are_read_again(write, realworldqa):
    folder = write(("default", "test", realworldqa))
    assert load("realworldqa", folder)[0]["answer"] == "Yes"
    write(("default", "test", realworldqa | {"answer": ["No"]}))
    assert load("realworldqa", folder)[0]["answer"] == "No"


def test_gqas_images_are_found_by_their_names(write, make_image):
    questions = {"imageId": ["n2", "n1", "n2"], "question": ["a", "b", "c"], "answer": ["yes", "no", "yes"]}
    images = {"id": ["n1", "n2"], "image": [make_image(9, 8), make_image(7, 6)]}
    asked = ("testdev_balanced_instructions", "testdev", questions)
    documents = load("gqa", write(asked, ("testdev_balanced_images", "testdev", images)))
    assert [document["image"].size for document in documents] == [(7, 6), (9, 8), (7, 6)]
    assert documents["question"][:] == ["a", "b", "c"]

    one = {"id": ["n1"], "image": [make_image(9, 8)]}
    with pytest.raises(LlavaError, match=r"no image 'n2' in testdev_balanced_images \(2 missing\)"):
        load("gqa", write(asked, ("testdev_balanced_images", "testdev", one)))
    with pytest.raises(LlavaError, match=r"task gqa: the data set .* cannot be loaded .*testdev_balanced_images"):
        load("gqa", write(asked))
    with_image = questions | {"image": [make_image(5, 4)] * 3}
    documents = load("gqa", write(("default", "testdev", with_image)))
    assert documents[1]["image"].size == (5, 4)


@pytest.mark.parametrize(
    ("split", "drop", "message"),
    [
        ("train", (), r"has no split 'test' \(found: train\)"),
        ("test", ("answer", "image"), r"has no column 'answer', 'image' \(found: question\)"),
    ],
)
def test_what_is_missing_is_named(write, realworldqa, split, drop, message):
    columns = {name: values for name, values in realworldqa.items() if name not in drop}
    with pytest.raises(LlavaError, match=f"task realworldqa: .*data {message}"):
        load("realworldqa", write(("default", split, columns)))


def test_a_broken_file_gets_one_line(write, realworldqa, monkeypatch):
    folder = write(("default", "test", realworldqa))
    (folder / "0.parquet").write_bytes(b"PAR1 broken")
    pauses = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    with pytest.raises(LlavaError, match=r"task realworldqa: the data set .*data cannot be loaded \(.+\)$") as caught:
        load("realworldqa", folder)
    assert "\n" not in str(caught.value)
    assert sum(pauses) < 2  # the harness would try five times, two seconds apart


def test_a_data_set_that_the_hub_does_not_give_gets_one_line(tmp_path):
    with pytest.raises(LlavaError, match=r"task ai2d: the data set lmms-lab-encoder/ai2d cannot be .*--data") as caught:
        load("ai2d", None)
    assert "\n" not in str(caught.value)
    with pytest.raises(LlavaError, match="task digit_pages: is on no hub; name its data set with --data"):
        load("digit_pages", None)
    with pytest.raises(LlavaError, match="not a dataset folder"):
        load("ai2d", tmp_path)
