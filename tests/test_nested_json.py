"""JSON and YAML that are nested too deeply, or without end: every reader names the file in one line."""

import json
import re
from functools import partial

import pytest

from llava.checkpoint.folder import read_index
from llava.cli import main
from llava.data import index
from llava.data.mixture import load_mixture, mixture_entries
from llava.data.pairs.processor import PairProcessor
from llava.data.pairs.vocabulary import read_answers
from llava.errors import DataError, LlavaError
from llava.eval.judge.main import _stored_jobs
from llava.eval.judge.reviews import ReviewStore
from llava.eval.judge.rubrics import read_rating
from llava.eval.messages import dialogue_of_context
from llava.eval.store import RESULTS, SAMPLES, _load_task_run
from llava.prepare_data.prepare import prepare
from llava.prepare_data.preview import load_processor, model_positions
from llava.text_files import read_json
from llava.train.folders.interim import MARK, read_mark
from llava.train.recipe import dotted

LEVELS = 100_000
NESTED = "[" * LEVELS + "]" * LEVELS
TURNS = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "It."}]


@pytest.mark.parametrize(
    ("reader", "name", "content"),
    [
        (lambda file: load_mixture(file, 0), "a.json", f"[{NESTED}]"),
        (lambda file: load_mixture(file, 0), "a.jsonl", f"{NESTED}\n"),
        (mixture_entries, "a.yaml", f"datasets: {'[' * 1000}"),
        (mixture_entries, "a.yaml", "datasets: &all [*all]"),
        (dotted.read_yaml, "a.yaml", "data: &it {mixture: *it}"),
        (partial(read_json, by_hand=True), "zero2.json", NESTED),
        (read_json, "config.json", NESTED),
        (read_index, "model.safetensors.index.json", f'{{"weight_map": {NESTED}}}'),
        (ReviewStore, "reviews.jsonl", f"{NESTED}\n"),
        (read_answers, "answers.json", NESTED),
        (lambda file: PairProcessor.from_pretrained(file.parent), "preprocessor_config.json", NESTED),
    ],
    ids=lambda given: given if isinstance(given, str) and len(given) < 40 else "",
)
def test_a_file_is_named_in_one_line(tmp_path, reader, name, content):
    file = tmp_path / name
    file.write_text(content)
    with pytest.raises(LlavaError, match=name) as error:
        reader(file)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < len(str(file)) + 300


def test_the_files_of_a_model(tmp_path, tiny_model_dir):
    for name in ("config.json", "processor_config.json", "tokenizer_config.json"):
        folder = tmp_path / name
        folder.mkdir()
        for file in tiny_model_dir.iterdir():
            if file.suffix in (".json", ".jinja"):
                (folder / file.name).write_bytes(file.read_bytes())
        (folder / name).write_text(NESTED)
        with pytest.raises(LlavaError, match=str(folder)) as error:
            (model_positions if name == "config.json" else load_processor)(folder)
        assert "\n" not in str(error.value)


def test_results_and_stored_answers(tmp_path, caplog):
    (tmp_path / "mmmu_val").mkdir()
    (tmp_path / "mmmu_val" / RESULTS).write_text("{}")
    (tmp_path / "mmmu_val" / SAMPLES).write_text(NESTED)
    with pytest.raises(LlavaError, match="mmmu_val: damaged results"):
        _load_task_run(tmp_path / "mmmu_val")
    (tmp_path / "mmmu_val.answers").mkdir()
    (tmp_path / "mmmu_val.answers" / "job.json").write_text(NESTED)
    with pytest.raises(LlavaError, match=r"job\.json: damaged"):
        _stored_jobs(tmp_path)
    (tmp_path / MARK).write_text(NESTED)
    assert read_mark(tmp_path) is None
    assert read_rating(f'{{"Rating": {NESTED}}}') is None
    assert dialogue_of_context(NESTED, None).turns[0].text == NESTED  # a document may hold anything


def test_a_record_that_was_indexed_with_fewer_calls_open(tmp_path, monkeypatch):
    (tmp_path / "a.json").write_text(json.dumps([{"id": 1, "conversations": TURNS}]))
    (sample,) = load_mixture(tmp_path / "a.json", 0).samples
    assert sample.id == "1"
    samples = load_mixture(tmp_path / "a.json", 0).samples

    def loads(_):
        raise RecursionError

    monkeypatch.setattr(index.json, "loads", loads)
    with pytest.raises(DataError, match=r"a.json row 1 is nested too deeply"):
        samples[0]


@pytest.mark.parametrize("levels", range(300, 1001, 50))
def test_prepare_at_every_depth(tmp_path, levels):
    """Of an id and of a key beside a turn's text, however much of the stack is in use."""
    deep = json.loads("[" * 250 + "]" * 250)
    text = json.dumps([{"id": "0", "conversations": [TURNS[0] | {"more": deep}, TURNS[1]]}])
    text = text.replace("[" * 250 + "]" * 250, "[" * levels + "]" * levels)
    (tmp_path / "own").mkdir()
    (tmp_path / "own/a.json").write_text(text)
    try:
        told = [str(prepared) for prepared in prepare(tmp_path / "own", tmp_path / "data")]
    except DataError as error:
        told = [str(error)]
    assert re.search(r"a.json: 1 of 1 rows|a.json (line|row) 1 is .*nested too deeply", *told)


def test_the_command_line(tmp_path, capsys):
    (tmp_path / "a.json").write_text(f"[{NESTED}]")
    assert main(["data", "check", str(tmp_path / "a.json")]) == 1
    printed = capsys.readouterr()
    assert "a.json line 1 is not JSON: nested too deeply" in printed.err
    assert "Traceback" not in printed.err
