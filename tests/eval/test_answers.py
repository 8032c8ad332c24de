"""Stored answers: what a key depends on, what a killed process leaves, and what a model is known by."""

import json

import numpy as np
import pytest
from loguru import logger

from llava.data.schema import Dialogue, Turn
from llava.errors import LlavaError
from llava.eval.answers import AnswerStore, answer_key


def answer_of(store: AnswerStore, key: str) -> str | None:
    return store.row(key)["answer"] if key in store else None


def test_answers_are_on_disk_at_once_and_read_again(tmp_path):
    folder = tmp_path / "task.answers"
    store = AnswerStore(folder)
    assert not folder.exists(), "a run without answers leaves nothing"
    store.append("a", 3, "é\u2028\nline two", weights="w1", device="cpu")
    store.append("b", 4, "")
    lines = (folder / "rank0.jsonl").read_text(encoding="utf-8").split("\n")
    assert [json.loads(line) for line in lines[:-1]] == [
        {"key": "a", "doc_id": 3, "answer": "é\u2028\nline two", "weights": "w1", "device": "cpu"},
        {"key": "b", "doc_id": 4, "answer": ""},
    ]
    again = AnswerStore(folder)
    assert (answer_of(again, "a"), answer_of(again, "b"), answer_of(again, "c")) == ("é\u2028\nline two", "", None)
    assert ("b" in again, "c" in again, again.on_disk) == (True, False, True)
    assert again.row("a")["device"] == "cpu"
    assert again.only_weights() == "w1"


def test_any_number_of_ranks_goes_on_and_the_first_answer_stays(tmp_path):
    for rank in range(3):
        AnswerStore(tmp_path, rank).append(f"key{rank}", rank, f"answer {rank}", weights="w1")
    one = AnswerStore(tmp_path)
    assert [answer_of(one, f"key{rank}") for rank in range(3)] == ["answer 0", "answer 1", "answer 2"]
    one.append("key3", 3, "answer 3", weights="w2")
    AnswerStore(tmp_path, 1).append("key3", 3, "another")
    assert answer_of(AnswerStore(tmp_path, 7), "key3") == "answer 3"
    with pytest.raises(LlavaError, match=r"answers of one model are needed, found 2 \(w1, w2\)"):
        AnswerStore(tmp_path).only_weights()
    with pytest.raises(LlavaError, match="answers of one model are needed, found 0"):
        AnswerStore(tmp_path / "none").only_weights()


def test_every_cut_of_the_file_leaves_the_whole_lines(tmp_path):
    """As a killed process may leave it: cut at any byte."""
    store = AnswerStore(tmp_path)
    for number, answer in enumerate(("one", "zwölf", "three")):
        store.append(f"key{number}", number, answer)
    file = tmp_path / "rank0.jsonl"
    whole = file.read_bytes()
    for length in range(len(whole) + 1):
        file.write_bytes(whole[:length])
        again = AnswerStore(tmp_path)
        complete = whole[:length].count(b"\n")
        assert [answer_of(again, f"key{number}") is not None for number in range(3)] == [n < complete for n in range(3)]
        again.append("new", 9, "nine")
        assert answer_of(AnswerStore(tmp_path), "new") == "nine"
        assert file.read_bytes().count(b"\n") == complete + 1


def test_a_damaged_line_is_left_out_and_said(tmp_path):
    AnswerStore(tmp_path).append("a", 0, "zero")
    file = tmp_path / "rank0.jsonl"
    file.write_bytes(b'\x00\x00\n{"key": "x"}\n[1]\n{"key": "y", "answer": 5}\n' + file.read_bytes())
    said = []
    sink = logger.add(said.append, format="{message}")
    assert answer_of(AnswerStore(tmp_path), "a") == "zero"
    logger.remove(sink)
    assert len(said) == 4
    for number, line in enumerate(said, start=1):
        assert f"rank0.jsonl line {number}: not a stored answer" in line


def test_a_store_without_a_folder_keeps_answers_in_memory():
    store = AnswerStore(None)
    store.append("a", 0, "zero")
    assert (answer_of(store, "a"), store.on_disk) == ("zero", False)


def test_a_key_says_all_that_is_asked(make_image):
    def key(text="Why?", role="human", image=None, videos=(), asked=("w1", "task", 3)):
        return answer_key(Dialogue([Turn(role, text)], [image or make_image(8, 9, 1)], videos), *asked)

    one_pixel = make_image(8, 9, 1)
    one_pixel.putpixel((7, 8), (1, 2, 3))
    frames = [make_image(8, 9, 2), make_image(8, 9, 3)]
    keys = [
        key(),
        key(text="Why"),
        key(role="system"),
        key(image=one_pixel),
        key(image=make_image(9, 8, 1)),
        key(videos=[frames]),
        key(videos=[frames[:1], frames[1:]]),
        key(videos=[frames[::-1]]),
        key(asked=("w2", "task", 3)),
        key(asked=("w1", "task", 4)),
        key(asked=("w1", "task", "3")),
    ]
    assert len(set(keys)) == len(keys)
    assert keys[0] == key() == key(image=make_image(8, 9, 1))
    reshaped = np.asarray(make_image(8, 9, 1)).reshape(8, 9, 3)  # the same bytes in another shape
    assert answer_key(Dialogue([], [reshaped])) != answer_key(Dialogue([], [make_image(8, 9, 1)]))
