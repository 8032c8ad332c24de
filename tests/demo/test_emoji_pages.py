"""Emoji pages of stand-in drawings, whose answers are checked against what the stored pictures show."""

import io
import re
from collections import Counter
from functools import cache

import numpy as np
import pytest
import yaml
from PIL import Image
from pyarrow import parquet

from llava.data.pairs.dataset import PairDataset
from llava.data.pairs.mixture import load_pairs, read_pair_mixture
from llava.data.pairs.processor import PairProcessor
from llava.data.pairs.vocabulary import load_answers
from llava.demo import main as command
from llava.demo.emoji_data import DATA_SETS, write_emoji_pages
from llava.demo.emoji_pages import KINDS, PLACES, STATEMENTS
from tests.demo.emoji_stand_ins import COLORS, STAND_INS

ROWS = {"train": 24, "val": 12, "test": 24}
NAMES = {(red << 16) + (green << 8) + blue: name for name, (red, green, blue) in COLORS.items()}
PARTS = {name: part for part, names in STAND_INS.parts.items() for name in names}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("emoji") / "data"
    write_emoji_pages(folder, STAND_INS, ROWS, seed=3)
    return folder


def rows(data, name):
    return parquet.read_table(data / f"{name}.parquet").to_pylist()


@cache
def shown(png: bytes) -> dict[str, str]:
    """{place: name} of a picture: the drawing's color that is most often in a cell."""
    pixels = np.asarray(Image.open(io.BytesIO(png)))
    assert pixels.shape == (96, 96, 3)
    codes = (pixels.astype(int) * (1 << 16, 1 << 8, 1)).sum(-1)
    found = {}
    for place, cell in zip(PLACES, codes.reshape(3, 32, 3, 32).transpose(0, 2, 1, 3).reshape(9, -1)):
        colors, counts = np.unique(cell[np.isin(cell, list(NAMES))], return_counts=True)
        if len(colors) and counts.max() > 200:
            found[place] = NAMES[int(colors[counts.argmax()])]
    return found


def holds(text: str, page: dict[str, str]) -> str:
    """The answer to a question by what the page shows."""
    names = {name: place for place, name in page.items()}
    if match := re.fullmatch(r"What is at the (.*)\?", text):
        return page[match[1]]
    if match := re.fullmatch(r"Where is the (.*)\?", text):
        return names[match[1]]
    if match := re.fullmatch(r"Is the (.*) on the page\?", text):
        return "yes" if match[1] in names else "no"
    assert text == "How many drawings are there?"
    return str(len(page))


def test_questions_are_answered_by_what_the_page_shows(data):
    asked = Counter()
    for split in ROWS:
        for index, row in enumerate(rows(data, f"questions_{split}")):
            page = shown(row["image"])
            for text, answers, name in zip(row["questions"], row["answers"], row["question_id"]):
                assert answers == [holds(text, page)], (split, index, text)
                number, _, kind = name.partition("-")
                assert int(number) == index
                asked[kind, answers[0] if kind.startswith("there") else ""] += 1
                new = [known for known in PARTS if f" {known} " in text.replace("?", " ") and PARTS[known] != "train"]
                assert bool(new) == kind.endswith("_new"), text
                assert split != "train" or not new
    assert {kind for kind, _ in asked} == set(KINDS)
    assert 0.3 < asked["there", "yes"] / (asked["there", "yes"] + asked["there", "no"]) < 0.7


def test_captions_tell_what_is_there_and_where(data):
    for name in ("captions", "retrieval"):
        for row in rows(data, f"{name}_test"):
            page = shown(row["image"])
            told = row["caption"]
            assert len(told) == 2
            for part in told[1].split(", "):
                thing, _, place = part.partition(" at the ")
                assert page[place] == thing
            named = told[0].split(", ")
            assert set(named) <= set(page.values())
            assert len(set(named)) == len(named) == min(3, len(page))


def test_statements_are_true_of_both_pages_or_false(data):
    said = Counter()
    for split in ROWS:
        for row in rows(data, f"statements_{split}"):
            left, right = (list(shown(row[name]).values()) for name in ("image_0", "image_1"))
            for text, answer in zip(row["questions"], row["answers"]):
                if match := re.fullmatch(r"Both pages show the (.*)\.", text):
                    kind, true = "both", match[1] in left and match[1] in right
                elif match := re.fullmatch(r"One of the pages alone shows the (.*)\.", text):
                    kind, true = "one", (match[1] in left) != (match[1] in right)
                elif match := re.fullmatch(r"The (left|right) page shows more drawings than the .* one\.", text):
                    sides = (left, right) if match[1] == "left" else (right, left)
                    kind, true = "more", len(sides[0]) > len(sides[1])
                else:
                    told = re.fullmatch(r"The pages show (\d+) drawings\.", text)
                    kind, true = "all", int(told[1]) == len(left) + len(right)
                assert answer == str(true), text
                said[kind, true] += 1
    assert set(said) == {(kind, true) for kind in STATEMENTS for true in (True, False)}
    assert min(said.values()) > 0.15 * max(said.values())


def test_sentences_follow_contradict_or_stay_open(data):
    for row in rows(data, "entailment_test"):
        page = shown(row["image"])
        assert sorted(row["labels"]) == ["contradiction", "entailment", "neutral"]
        for (premise, text), label in zip(row["sentences"], row["labels"]):
            assert set(premise.split(", ")) <= set(page.values())
            if match := re.fullmatch(r"The (.*) is at the (.*)\.", text):
                assert label == ("entailment" if page.get(match[2]) == match[1] else "contradiction")
            elif match := re.fullmatch(r"The page shows the (.*)\.", text):
                assert label == ("entailment" if match[1] in page.values() else "contradiction")
            else:
                assert label == "neutral"
                assert " belongs to " in text


def test_no_held_out_name_is_in_training(data):
    parts = STAND_INS.parts
    assert Counter(name for names in parts.values() for name in names) == Counter(STAND_INS.names)
    seen = {}
    for name in DATA_SETS:
        columns = ("image_0", "image_1") if name == "statements" else ("image",)
        for split in ROWS:
            pages = [shown(row[column]) for row in rows(data, f"{name}_{split}") for column in columns]
            assert all(len(set(page.values())) == len(page) > 0 for page in pages)
            seen[name, split] = {PARTS[shown_name] for page in pages for shown_name in page.values()}
            assert {len(page) for page in pages} <= set(range(1, 10))
        assert seen[name, "train"] == {"train"}
        held_out = {"val": {"val"}, "test": {"test"}}
        for split, own in held_out.items():
            assert seen[name, split] == ({"train"} if name == "retrieval" else own | {"train"})
    for split, style_part in (("names", "test"), ("drawings", "train")):
        names = [row["caption"][0] for row in rows(data, split)]
        assert names == list(parts[style_part][: len(parts["test"])])
        assert [list(shown(row["image"]).values()) for row in rows(data, split)] == [[name] for name in names]


def test_the_same_seed_makes_the_same_rows_however_many(data, tmp_path):
    again, other = tmp_path / "again", tmp_path / "other"
    write_emoji_pages(again, STAND_INS, {split: 5 for split in ROWS}, seed=3)
    write_emoji_pages(other, STAND_INS, {split: 5 for split in ROWS}, seed=4, names=["questions"])
    for name in DATA_SETS:
        for split in ROWS:
            assert rows(again, f"{name}_{split}") == rows(data, f"{name}_{split}")[:5]
    assert rows(other, "questions_train") != rows(again, "questions_train")
    assert sorted(path.name for path in other.iterdir() if path.suffix != ".parquet") == [
        "answers.json",
        "questions.yaml",
    ]


def test_files_are_read_as_pairs_and_every_answer_is_in_the_vocabulary(data):
    texts = {"captions": 2, "retrieval": 2, "statements": 2, "entailment": 3}
    for name in DATA_SETS:
        mixture = read_pair_mixture(data / f"{name}.yaml")
        assert set(mixture.splits) >= set(ROWS)
        for split, count in ROWS.items():
            store = load_pairs(mixture, split).store
            assert name == "questions" or len(store) == texts[name] * count
            pairs = [store[number] for number in range(len(store))]
            if name in ("statements", "entailment"):
                assert {pair.label for pair in pairs} == set(range(2 if name == "statements" else 3))
            if name == "questions":
                processor = PairProcessor(None, 96, answers=load_answers(mixture))
                dataset = PairDataset(store, processor, transform="squash", parts=["answers"])
                assert {dataset.targets(pair).sum() for pair in pairs} == {1.0}
    vocabulary = load_answers(read_pair_mixture(data / "questions.yaml"))
    assert len(vocabulary) == 2 + 9 + 9 + 48
    assert yaml.safe_load((data / "retrieval.yaml").read_text())["splits"].keys() == {*ROWS, "names", "drawings"}


def test_the_command_knows_every_data_set():
    assert tuple(DATA_SETS) == command.EMOJI_DATA
