"""`llava data check` and `llava data preview` of pairs."""

import json
from dataclasses import replace

import pytest
from PIL import Image

from llava.errors import LlavaError
from llava.prepare_data.main import main
from tests.data.pairs.conftest import (
    ENTAILMENT,
    QUESTIONS,
    STATEMENTS,
    captions,
    picture,
    processor,
    tokenizer,
    write_arrow,
    write_json,
    write_parquet,
)
from tests.two_tower.tiny import tiny_config

__all__ = ["processor", "tokenizer"]


@pytest.fixture
def model(tmp_path, processor):
    def of_task(task, vocab_size=None, answers=None, **options):
        folder = tmp_path / task
        tiny_config(task, vocab_size or len(processor.tokenizer), **options).save_pretrained(folder)
        replace(processor, answers=answers).save_pretrained(folder)
        return folder

    return of_task


def mixture(tmp_path, kind, files, answers=None):
    lines = [f"kind: {kind}", *([f"answers: {answers}"] if answers else []), "splits:"]
    for split, file in files.items():
        lines += [f"  {split}:", f"    - {{name: made_up, files: {file}, expected_rows: 2}}"]
    path = tmp_path / "mixture.yaml"
    path.write_text("\n".join(lines))
    return path


def run(*words):
    return main([str(word) for word in words])


def test_whole_data_pass(tmp_path, capsys):
    write_arrow(tmp_path / "a.arrow", captions(2))
    write_parquet(tmp_path / "b.parquet", captions(3))
    file = mixture(tmp_path, "captions", {"train": "a.arrow", "val": "b.parquet"})
    assert run("check", file, "--decode") == 0
    shown = capsys.readouterr()
    assert "0 of 5 samples are unusable" in shown.out
    assert "val: made_up" in shown.out
    assert shown.err == "warning: val: made_up has 3 rows, expected 2\n"


def test_every_fault_is_named(tmp_path, capsys):
    rows = [
        {"image": picture((0, 0, 0)), "caption": ["a page"]},
        {"image": None, "caption": ["a page"]},
        {"image": picture((0, 0, 0)), "caption": []},
        {"image": b"no image", "caption": ["a page", " "]},
    ]
    path = write_parquet(tmp_path / "bad.parquet", rows)
    file = mixture(tmp_path, "captions", {"train": "bad.parquet", "again": "bad.parquet", "val": "none.arrow"})
    assert run("check", file, "--out", tmp_path / "report") == 1
    lines = [json.loads(line) for line in (tmp_path / "report/bad.jsonl").read_text().splitlines()]
    assert [(row["row"], row["kind"], row["message"]) for row in lines if row["file"] == str(path)] == [
        (2, "record", "a caption without image: image is empty"),
        (3, "record", "an image without caption"),
        (4, "undecodable", "in the row is not an image that Pillow can read"),
        (4, "record", "caption 2: an image without caption: found ' '"),
    ]
    (missing,) = [row for row in lines if row["file"] != str(path)]
    assert missing["message"].startswith(f"data file {tmp_path}/none.arrow cannot be read")
    assert "6 of 8 samples are unusable" in capsys.readouterr().out


def test_images_by_path_are_looked_for(tmp_path, capsys):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    rows = [{"image": name, "caption": "a page"} for name in ("a.png", "b.png", "../a.png")]
    write_json(tmp_path / "j.jsonl", [*rows, {"image": "a.png", "text": "a page"}])
    file = mixture(tmp_path, "captions", {"train": "j.jsonl"})
    assert run("check", file, "--image_folder", tmp_path) == 1
    shown = capsys.readouterr().err.splitlines()
    assert [line.partition("j.jsonl ")[2].split(":")[0] for line in shown[:3]] == [
        "row 2 missing",
        "row 3 outside",
        "row 4 record",
    ]
    assert "unknown key 'text'" in shown[2]


def test_answers_and_labels(tmp_path, capsys, model):
    write_arrow(tmp_path / "vqa.arrow", QUESTIONS)
    (tmp_path / "answers.json").write_text('["maybe", "blue"]')
    file = mixture(tmp_path, "questions", {"train": "vqa.arrow"}, "answers.json")
    assert run("check", file) == 1
    assert (
        "vqa.arrow: none of the answers to its 3 questions is among the 2 of the vocabulary" in capsys.readouterr().err
    )
    with pytest.raises(
        LlavaError, match=r"answers.json is another vocabulary than .*2 answers, the model's 3; first other"
    ):
        run("check", file, "--model", model("vqav2", answers=("blue", "red", "no"), num_answers=3))
    with pytest.raises(LlavaError, match=r"answers.json has 3 answers, but the head of .* has 4"):
        run("check", file, "--model", model("vqav2", answers=("blue", "red", "no"), num_answers=4))
    write_arrow(tmp_path / "snli.arrow", [{**ENTAILMENT[0], "labels": [2, 7]}])
    assert run("check", mixture(tmp_path, "entailment", {"train": "snli.arrow"})) == 1
    assert "row 1 record: sentence 2: labels has 7, expected one of contradiction" in capsys.readouterr().err


def test_a_model_that_does_not_fit(tmp_path, model):
    write_arrow(tmp_path / "a.arrow", captions(2))
    file = mixture(tmp_path, "captions", {"train": "a.arrow"})
    with pytest.raises(LlavaError, match=r"holds captions, but .* was trained for VQAv2"):
        run("check", file, "--model", model("vqav2", answers=("a",), num_answers=1))
    with pytest.raises(LlavaError, match=r"has 25 tokens, but the text tower of .* embeds 20"):
        run("check", file, "--model", model("retrieval", vocab_size=20))


def test_a_pair_is_shown(tmp_path, capsys, model):
    write_arrow(tmp_path / "vqa.arrow", QUESTIONS)
    file = mixture(tmp_path, "questions", {"train": "vqa.arrow", "val": "vqa.arrow"})
    folder = model("vqav2", answers=("red", "yes"), num_answers=2)
    out = tmp_path / "pair.png"
    assert run("preview", "--model", folder, "--data", file, "--split", "val", "--index", 0, "--out", out) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"pair 'vqa.arrow:1' ({tmp_path}/vqa.arrow row 1 question 1)",
        "image 1: 24 x 16 pixels, seen as 16 x 16, squash; in training randaug_no_flip",
        "text: what color",
        "tokens, 4 of 12: <s> what color </s>",
        "answer red: 1",
        "answer green: 0.3, not in the vocabulary",
        f"picture: {out}",
    ]
    assert Image.open(out).size == (4 * 20 - 4, 16)
    with pytest.raises(LlavaError, match="has no split 'test'; it has train, val"):
        run("preview", "--model", folder, "--data", file, "--split", "test", "--index", 0)
    with pytest.raises(LlavaError, match=r"index 3 is out of range: .* split train has 3 pairs"):
        run("preview", "--model", folder, "--data", file, "--index", 3)


def test_two_images_and_a_label_are_shown(tmp_path, capsys, model):
    file = write_arrow(tmp_path / "nlvr2.arrow", STATEMENTS)
    out = tmp_path / "pair.png"
    assert run("preview", "--model", model("nlvr2"), "--data", file, "--index", 1, "--out", out) == 0
    assert "label 0: False" in capsys.readouterr().out
    assert Image.open(out).size == (4 * 20 - 4, 2 * 20 - 4)
