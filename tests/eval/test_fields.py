"""Documents that cannot be asked or scored are named before any model is loaded, in each field that each task reads."""

import json
import sys
from dataclasses import replace

import datasets
import pytest

from llava.cli import main
from llava.errors import LlavaError
from llava.eval.documents import load_documents, source_of, spec_of
from llava.eval.fields import FIELDS, check_documents
from llava.eval.task import build_task, task_config, task_names
from tests.eval.benchmarks.test_twins import TWINS
from tests.eval.benchmarks.twins import IMAGE, IMAGES, write_twin
from tests.eval.benchmarks.unjudged import OCRBENCH, REALWORLDQA, SCIENCEQA, TEXTVQA

MAY_BE_NULL = {("mathvista_testmini_format", "choices")}  # of questions without choices
NULLS = [(twin, field) for twin in TWINS for part in FIELDS[twin.task] for field in part]


def check(twin, folder, limit=None, scores=True):
    source = source_of(spec_of(twin.task), str(write_twin(twin, folder)))
    check_documents(twin.task, "DATA", load_documents(spec_of(twin.task), source), limit, scores)


def changed(twin, number, **fields):
    documents = [row | (fields if index == number else {}) for index, row in enumerate(twin.documents)]
    return replace(twin, documents=documents)


def test_every_task_has_its_fields():
    assert sorted(FIELDS) == sorted(task_names())
    assert len(NULLS) > 60


@pytest.mark.parametrize("twin", TWINS, ids=lambda twin: twin.task)
def test_whole_documents_pass_and_each_null_is_named(twin, tmp_path):
    check(twin, tmp_path / "whole")
    for field in [field for part in FIELDS[twin.task] for field in part if field in twin.features]:
        if (twin.task, field) in MAY_BE_NULL:
            continue
        with pytest.raises(LlavaError, match=rf"^{twin.task} document 0: '\w+' is .*, needed: .* \(1 of ") as caught:
            check(changed(twin, 0, **{field: None}), tmp_path / field)
        assert f"{field!r} is null" in str(caught.value)
        if twin.features[field] in (IMAGE, IMAGES):
            continue
        check(changed(twin, 1, **{field: None}), tmp_path / f"{field} behind the limit", limit=1)


@pytest.mark.parametrize(
    ("twin", "fields", "message"),
    [
        (TEXTVQA, {"answers": []}, r"'answers' is \[\], needed: texts, at least one that is not empty"),
        (TEXTVQA, {"answers": [None]}, r"'answers' is \[None\]"),
        (REALWORLDQA, {"question": "  \n"}, r"'question' is '  \\n', needed: a text that is not empty"),
        (OCRBENCH, {"answer": ["a", ""]}, r"'answer' is \['a', ''\]"),  # would be found in every answer
        (OCRBENCH, {"question_type": "Reading"}, "'question_type' is 'Reading', needed: one of Regular"),
        (SCIENCEQA, {"answer": 7}, "'answer' is 7, needed: the number of one of the choices"),
    ],
)
def test_what_cannot_be_scored_is_named(twin, fields, message, tmp_path):
    with pytest.raises(LlavaError, match=rf"^{twin.task} document 2: {message}"):
        check(changed(twin, 2, **fields), tmp_path / "data")


def test_numbers_for_answers_are_named_and_only_where_they_are_scored(tmp_path):
    twin = replace(REALWORLDQA, features=REALWORLDQA.features | {"answer": datasets.Value("int64")})
    twin = replace(twin, documents=[row | {"answer": 5} for row in twin.documents])
    with pytest.raises(LlavaError, match=r"document 0: 'answer' is 5, needed: a text .* \(4 of 4 documents cannot be"):
        check(twin, tmp_path / "scored")
    check(twin, tmp_path / "predicted", scores=False)


def test_a_failing_task_function_names_its_document_at_once(tmp_path):
    source = source_of(spec_of("textvqa_val"), str(write_twin(TEXTVQA, tmp_path / "data")))
    task = build_task(
        "textvqa_val",
        task_config("textvqa_val", "paper"),
        source,
        load_documents(spec_of("textvqa_val"), source),
        simple=True,
    )
    doc = dict(task.eval_docs_no_media[2])
    assert task.process_results(dict(doc), ["canon"])["exact_match"] == pytest.approx(1.0)
    with pytest.raises(LlavaError, match=r"^textvqa_val document 2: cannot be scored \(AttributeError: "):
        task.process_results(doc | {"answers": [None]}, ["canon"])


def test_other_tasks_go_on_and_the_status_says_it(forked_python, tiny_model_dir, tmp_path, capfd, monkeypatch):
    """Data without documents, and a null: both are told in a line each, before a model is loaded."""
    monkeypatch.setattr(sys, "executable", forked_python.command)
    write_twin(changed(REALWORLDQA, 1, image=None), tmp_path / "data" / "realworldqa")
    empty = write_twin(replace(TEXTVQA, documents=TEXTVQA.documents[:1]), tmp_path / "data" / "textvqa_val")
    (file,) = empty.rglob("*.parquet")
    datasets.Dataset.from_list(TEXTVQA.documents, features=datasets.Features(TEXTVQA.features)).select([]).to_parquet(
        file
    )
    options = ["--model", tiny_model_dir, "--data", tmp_path / "data", "--out", tmp_path / "run"]
    assert main(["eval", "--tasks", "textvqa_val,realworldqa", *map(str, options)]) == 1
    said = capfd.readouterr().err.splitlines()
    assert said[-3:] == [
        f"error: task textvqa_val failed: {tmp_path / 'data' / 'textvqa_val'} has no documents",
        "error: task realworldqa failed: realworldqa document 1: 'image' is null, needed: an image (1 of 4 documents "
        "cannot be asked and scored; the model was not loaded)",
        "error: 2 of 2 tasks failed: textvqa_val, realworldqa",
    ]
    assert not any("Traceback" in line for line in said)
    assert json.dumps([path.name for path in (tmp_path / "run").iterdir()]) == "[]"
