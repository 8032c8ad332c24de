import pickle

import numpy as np
import pyarrow as pa
import pytest

from llava.data.pairs import tables
from llava.data.pairs.mixture import load_pairs, read_pair_mixture
from llava.data.pairs.vocabulary import load_answers, read_answers
from llava.errors import DataError
from tests.data.pairs.conftest import (
    ENTAILMENT,
    QUESTIONS,
    STATEMENTS,
    captions,
    picture,
    write_arrow,
    write_json,
    write_parquet,
)


def load(path, kind=None, split="all", **options):
    return load_pairs(read_pair_mixture(path, kind), split, **options).store


def mixture(folder, splits, kind="captions", answers=None):
    text = f"kind: {kind}\n" + (f"answers: {answers}\n" if answers else "") + "splits:\n"
    for split, entries in splits.items():
        text += f"  {split}:\n" + "".join(f"    - {entry}\n" for entry in entries)
    path = folder / "mixture.yaml"
    path.write_text(text)
    return path


def test_every_text_of_a_row_is_a_pair(tmp_path):
    store = load(write_arrow(tmp_path / "coco.arrow", captions(4)))
    assert [pair.text for pair in store] == [
        f"caption {text} of {row}" for row, count in enumerate((1, 2, 3, 1)) for text in range(count)
    ]
    assert [pair.image_index for pair in store] == [0, 1, 1, 2, 2, 2, 3]
    assert store[3].images == (captions(4)[2]["image"],)
    assert store[5].origin == f"{tmp_path}/coco.arrow row 3 caption 3"
    assert store.num_images == 4


def test_a_mapped_file_is_opened_again_by_another_process(tmp_path):
    store = load(write_arrow(tmp_path / "coco.arrow", captions(4)))
    sent = pickle.dumps(store)
    assert len(sent) < 3000
    assert pickle.loads(sent)[5] == store[5]


@pytest.mark.parametrize("kept", [False, True])
def test_parquet_and_json_give_the_same_pairs(tmp_path, monkeypatch, kept):
    if kept:
        monkeypatch.setattr(tables, "SMALL", 0)
    rows = captions(5)
    for row in rows:
        (tmp_path / row["image_id"]).write_bytes(row["image"])
    of_json = [{"image": row["image_id"], "caption": row["caption"]} for row in rows]
    by_arrow = load(write_arrow(tmp_path / "a.arrow", rows))
    by_parquet = load(write_parquet(tmp_path / "p.parquet", rows))
    by_json = load(write_json(tmp_path / "j.jsonl", of_json), "captions")
    for store in (by_parquet, by_json):
        assert [(pair.text, pair.image_index) for pair in store] == [(pair.text, pair.image_index) for pair in by_arrow]
    assert by_parquet[2].images == by_arrow[2].images
    assert by_json[2].images == ("1.jpg",)
    assert len(list(tmp_path.glob(".llava-index/*/pairs-*.arrow"))) == (2 if kept else 0)
    assert not list(tmp_path.glob(".llava-index/*/*.unfinished"))


def test_a_changed_file_is_kept_anew_and_its_old_copy_goes(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "SMALL", 0)
    for count in (2, 5):
        store = load(write_parquet(tmp_path / "p.parquet", captions(count)))
    assert store.num_images == 5
    assert len(list(tmp_path.glob(".llava-index/p.parquet/pairs-*.arrow"))) == 1


def test_records_of_the_same_path_are_the_same_image(tmp_path):
    rows = [{"image": name, "caption": "a page"} for name in ("b.png", "a.png", "b.png")]
    store = load(write_json(tmp_path / "j.jsonl", rows), "captions")
    assert [pair.image_index for pair in store] == [0, 1, 0]
    assert store.image_indices().tolist() == [0, 1, 0]
    assert store.num_images == 2
    assert store.image(0)[0] == "b.png"


def test_llava_conversations_are_captions_and_questions(tmp_path):
    turns = [{"from": "human", "value": "<image>\nwhat color"}, {"from": "gpt", "value": "Red."}]
    file = write_json(tmp_path / "j.jsonl", [{"id": "one", "image": "a.png", "conversations": turns}])
    assert load(file, "captions")[0].text == "Red."
    question = load(file, "questions")[0]
    assert (question.text, question.answers, question.scores, question.id) == ("what color", ("red",), (1.0,), "one")


def test_questions_of_vilts_files(tmp_path):
    store = load(write_arrow(tmp_path / "vqa.arrow", QUESTIONS), "questions")
    first = store[0]
    assert (first.text, first.answers, first.scores, first.question_id) == (
        "what color",
        ("red", "green"),
        (1.0, 0.3),
        70,
    )
    assert store[2].question_id == 80
    test = [{**row, "answers": [], "answer_labels": [], "answer_scores": []} for row in QUESTIONS]
    nothing = load(
        write_arrow(tmp_path / "test.arrow", test, {"answers": pa.list_(pa.list_(pa.string()))}), "questions"
    )
    assert [(pair.answers, pair.question_id) for pair in nothing] == [(None, 70), (None, 71), (None, 80)]


def test_answers_of_several_people_are_scored_by_their_number(tmp_path):
    rows = [{"image": "a.png", "question": "how many", "answers": ["two"] * 3 + ["2", "three"]}]
    pair = load(write_json(tmp_path / "j.jsonl", rows), "questions")[0]
    assert (pair.answers, pair.scores) == (("2", "3"), (1.0, 0.3))


def test_statements_and_sentences(tmp_path):
    pairs = list(load(write_arrow(tmp_path / "nlvr2.arrow", STATEMENTS)))
    assert [(pair.text, pair.label, len(pair.images)) for pair in pairs] == [
        ("the left is red", 1, 2),
        ("the left is blue", 0, 2),
    ]
    pairs = list(load(write_arrow(tmp_path / "snli.arrow", ENTAILMENT)))
    assert [(pair.text, pair.label) for pair in pairs] == [("there is a circle", 2), ("no circle", 0)]
    of_json = [{"image": ["a.png", "b.png"], "question": "the left is red", "label": "true"}]
    pair = load(write_json(tmp_path / "j.jsonl", of_json), "statements")[0]
    assert (pair.images, pair.label) == (("a.png", "b.png"), 1)


def test_a_mixture_names_splits_and_data_sets(tmp_path):
    for name, count, first in (("a_0", 3, 0), ("a_1", 4, 10), ("b", 5, 20)):
        write_arrow(tmp_path / f"{name}.arrow", captions(count, first))
    entries = [
        "{name: a, files: 'a_{0,1}.arrow', expected_rows: 7}",
        "{name: b, files: b.arrow, sampling_strategy: 'end:2'}",
    ]
    file = mixture(tmp_path, {"train": entries, "val": ["{name: b, files: b.arrow}"]})
    loaded = load_pairs(read_pair_mixture(file), "train")
    assert [(row.rows, row.taken, row.pairs) for row in loaded.table] == [(3, 3, 6), (4, 4, 7), (5, 2, 3)]
    store = loaded.store
    assert [store[index].text for index in (0, 6, 13, 15)] == [
        "caption 0 of 0", "caption 0 of 10", "caption 0 of 23", "caption 1 of 24",
    ]  # fmt: skip
    assert [store[index].image_index for index in (0, 6, 13, 15)] == [0, 3, 7, 8]
    assert store.image_indices().tolist() == [0, 1, 1, 2, 2, 2, 3, 4, 4, 5, 5, 5, 6, 7, 8, 8]
    with pytest.raises(DataError, match="has no split 'test'; it has train, val"):
        load_pairs(read_pair_mixture(file), "test")
    with pytest.raises(DataError, match="holds captions, but questions are needed"):
        read_pair_mixture(file, "questions")


def test_false_images_are_others_of_the_same_data_set(tmp_path):
    for name, count, first in (("a_0", 2, 0), ("b", 3, 20), ("a_1", 2, 10)):
        write_arrow(tmp_path / f"{name}.arrow", captions(count, first))
    entries = [f"{{name: {name[0]}, files: {name}.arrow}}" for name in ("a_0", "b", "a_1")]
    store = load_pairs(read_pair_mixture(mixture(tmp_path, {"train": entries})), "train").store
    for position in range(len(store)):
        mine = store.image_index(position)
        drawn = {store.other_image(position, draw) for draw in np.arange(0, 1, 0.01)}
        assert drawn == ({0, 1, 5, 6} if mine in (0, 1, 5, 6) else {2, 3, 4}) - {mine}


def test_one_image_alone_has_no_false_one(tmp_path):
    store = load(write_arrow(tmp_path / "one.arrow", captions(1)))
    with pytest.raises(DataError, match="data set one has 1 image: there is no other"):
        store.other_image(0, 0.5)


def test_the_vocabulary_is_recovered_from_the_labels(tmp_path):
    write_arrow(tmp_path / "vqa.arrow", QUESTIONS)
    entries = {"train": ["{name: vqa, files: vqa.arrow}"]}
    assert load_answers(read_pair_mixture(mixture(tmp_path, entries, "questions"))) == ("red", "green", "yes", "2")
    (tmp_path / "named.json").write_text('{"no": 1, "yes": 0}', encoding="utf-8-sig")  # as Notepad writes it
    named = mixture(tmp_path, entries, "questions", answers="named.json")
    assert load_answers(read_pair_mixture(named)) == ("yes", "no")
    twisted = [{**QUESTIONS[0], "answer_labels": [[1, 0], [2]]}]
    write_arrow(tmp_path / "other.arrow", twisted)
    both = mixture(
        tmp_path, {"train": ["{name: vqa, files: 'vqa,other.arrow'}".replace("vqa,other", "{vqa,other}")]}, "questions"
    )
    with pytest.raises(DataError, match=r"other.arrow: answer_label 0 is 'green', elsewhere 'red'"):
        load_answers(read_pair_mixture(both))


def test_an_answer_of_two_labels_is_told(tmp_path):
    write_arrow(tmp_path / "vqa.arrow", [{**QUESTIONS[0], "answers": [["red", "red"], ["yes"]]}])
    with pytest.raises(DataError, match=r"vqa\.arrow: an answer has several answer_labels"):
        load_answers(read_pair_mixture(mixture(tmp_path, {"train": ["{name: a, files: vqa.arrow}"]}, "questions")))


def test_a_vocabulary_is_counted_where_no_file_numbers_its_answers(tmp_path):
    rows = [{"image": "a.png", "question": "q", "answers": [answer]} for answer in ["no", "yes", "No", "two", "yes"]]
    file = read_pair_mixture(write_json(tmp_path / "j.jsonl", rows), "questions")
    assert load_answers(file, least_count=2) == ("no", "yes")
    with pytest.raises(DataError, match="no answer is the best one of at least 9 questions"):
        load_answers(file)
    (tmp_path / "bad.json").write_text('["yes", "yes"]')
    with pytest.raises(DataError, match="must be a list of different texts"):
        read_answers(tmp_path / "bad.json")


BAD_ROWS = {
    "without image": (
        [{"image": None, "caption": ["a page"]}],
        "row 1 caption 1: a caption without image: image is empty",
    ),
    "empty": (
        [{"image": picture((0, 0, 0)), "caption": [" "]}],
        "row 1 caption 1: an image without caption: found ' '",
    ),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_a_bad_pair_is_named(tmp_path, name):
    rows, message = BAD_ROWS[name]
    path = write_arrow(tmp_path / "bad.arrow", rows, {"image": pa.binary()})
    with pytest.raises(DataError) as error:
        load(path, "captions")[0]
    assert str(error.value) == f"{path} {message}"


def test_a_label_that_is_none_is_named_with_those_that_are(tmp_path):
    path = write_arrow(tmp_path / "snli.arrow", [{**ENTAILMENT[0], "labels": [3, 0]}])
    with pytest.raises(
        DataError, match="row 1 sentence 1: labels has 3, expected one of contradiction, neutral, entailment"
    ):
        load(path)[0]
    path = write_arrow(tmp_path / "few.arrow", [{**ENTAILMENT[0], "labels": [2]}])
    with pytest.raises(DataError, match="1 labels for 2 texts"):
        load(path)[0]


def test_files_that_are_none(tmp_path):
    with pytest.raises(DataError, match=r"no\.arrow cannot be read: "):
        load(tmp_path / "no.arrow", "captions")
    (tmp_path / "text.arrow").write_text("words")
    with pytest.raises(DataError, match=r"text\.arrow is no arrow file: "):
        load(tmp_path / "text.arrow", "captions")
    path = write_arrow(tmp_path / "vqa.arrow", QUESTIONS)
    with pytest.raises(
        DataError, match=r"vqa.arrow: captions need the columns caption, image; it has no caption \(it has image, "
    ):
        load(path, "captions")


def test_a_bad_record_of_json_is_told_when_it_is_read(tmp_path):
    rows = [{"image": "a.png", "caption": "a page"}, {"image": "b.png", "captions": ["x"], "colour": 1}]
    path = write_json(tmp_path / "j.jsonl", rows)
    store = load(path, "captions")
    assert len(store) == 1  # its row has no text
    assert store.files[0].fault(1).startswith("unknown key 'colour'")


def test_rows_are_left_out_by_id_or_by_number(tmp_path):
    path = write_arrow(tmp_path / "coco.arrow", captions(3))
    assert [pair.text[-1] for pair in load(path, skip_ids={"coco.arrow:2"})] == ["0", "2", "2", "2"]
    rows = [{"id": name, "image": "a.png", "caption": "a page"} for name in "xyz"]
    assert [pair.id for pair in load(write_json(tmp_path / "j.jsonl", rows), "captions", skip_ids={"y"})] == ["x", "z"]
    del rows[0]["id"], rows[1]["id"]
    path = write_json(tmp_path / "j.jsonl", rows)
    skipped = {"j.jsonl:2", "j.jsonl:3", "j.jsonl:x"}  # of which the second is another id than the row's own
    assert [pair.id for pair in load(path, "captions", skip_ids=skipped)] == ["j.jsonl:1", "z"]
