import itertools
import json
import re

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, Qwen2ForCausalLM, SiglipVisionConfig, SiglipVisionModel

from llava.cli import main
from llava.data.conversation import encode_prompt
from llava.data.inspect import inspect_samples
from llava.data.mixture import load_mixture
from llava.data.schema import Turn
from llava.demo import digit_pages, pages_as_text, pretrain
from llava.demo.digit_pages import (
    DIGITS,
    EQUALLY_LONG,
    KINDS,
    LENGTHS,
    PAGE,
    SLIP,
    ask,
    caption_of,
    cells_of,
    draw_numbers,
    draw_page,
    note_cells,
    numbers_to_train_on,
)
from llava.demo.pages import rng_for
from llava.demo.tokenizer import VOCABULARY, train_tokenizer


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """`llava demo make` at a small size."""
    folder = tmp_path_factory.mktemp("demo") / "data"
    assert main(["demo", "make", str(folder), "--captions", "6", "--pages", "60", "--test_pages", "9"]) == 0
    return folder


def test_every_mixture_is_whole(data):
    for stage, rows in (("stage1", 6), ("stage1_5", 24), ("stage2", 36)):
        samples = load_mixture(data / f"{stage}.yaml", seed=0).samples
        assert len(samples) == rows
        inspection = inspect_samples(samples, data)
        assert inspection.faults == []
        sizes = {size for of_sample in inspection.image_sizes for size in of_sample}
        assert sizes == {(56, 56) if stage == "stage1" else (112, 112)}
    assert any(not sample.images for sample in samples), "arithmetic without a page"


def test_the_same_seed_makes_the_same_files(data, tmp_path):
    again = tmp_path / "again"
    main(["demo", "make", str(again), "--captions", "6", "--pages", "60", "--test_pages", "9"])
    files = [path.relative_to(data) for path in data.rglob("*") if path.is_file()]
    assert len(files) > 60
    for file in files:
        assert (again / file).read_bytes() == (data / file).read_bytes(), file


def test_the_test_set_loads_and_its_answers_are_right(data, tmp_path):
    from datasets import load_dataset

    rows = load_dataset(str(data / "test"), cache_dir=str(tmp_path))["test"]
    assert len(rows) == 18
    assert set(rows["kind"]) == set(KINDS)
    for index in range(9):
        numbers = draw_numbers(rng_for(0, "test", index))
        row = rows[2 * index]
        assert row["image"].size == (112, 112)
        place = row["question"].removesuffix(".")[-1]
        line, column = divmod("abcdef".index(place), 3)
        assert row["answers"] == [place + numbers[line][column]]
    example = json.loads((data / "example.json").read_text())
    assert example == {"question": rows[0]["question"], "answers": rows[0]["answers"]}


def test_training_never_sees_the_test_digits():
    train, test = (digit_pages.stamps(part) for part in (False, True))
    for digit in DIGITS:
        assert len(train[digit]) == 450 * digit_pages.VARIANTS
        assert len(test[digit]) == 50 * digit_pages.VARIANTS
        assert not {ink.tobytes() for ink in train[digit]} & {ink.tobytes() for ink in test[digit]}
    assert set(train) == set(test) == {*DIGITS, *"abcdef"}


def test_a_variant_is_the_same_whenever_it_is_first_drawn():
    forwards, backwards = (digit_pages.stamps.__wrapped__(True)["7"] for _ in range(2))
    expected, found = list(forwards), [backwards[index] for index in reversed(range(len(backwards)))]
    assert len({ink.tobytes() for ink in expected}) > 300
    assert all(np.array_equal(ink, same) for ink, same in zip(expected, reversed(found), strict=True))
    assert expected[0].shape == (digit_pages.PATCH, digit_pages.PATCH)


def test_the_tower_learns_from_warped_training_scans_and_is_measured_as_on_pages(monkeypatch):
    warped = digit_pages.stamps(False, warped=True)
    drawn = {ink.tobytes() for ink in warped["7"]}
    assert len(drawn) > 0.99 * 450 * digit_pages.WARPED
    assert not drawn & {ink.tobytes() for test in (False, True) for ink in digit_pages.stamps(test)["7"]}
    asked, stamps = [], digit_pages.stamps
    monkeypatch.setattr(digit_pages, "stamps", lambda *which: asked.append(which) or stamps(*which))
    monkeypatch.setattr(pretrain, "SHRUNKEN", 0)
    for test in (False, True):
        pretrain.tiles([0, 0], 1, test)
    assert asked == [(False, True), (True, False)]


def test_every_character_lies_in_its_patch():
    """All six letters, and a digit to the right of as many as the numbers are long."""
    numbers = ("407", "15")
    pixels = np.asarray(draw_page(rng_for(0, "test", 3), numbers, test=True)).astype(int)
    paper = pixels.max()
    inked = {(y, x) for y in range(8) for x in range(8) if (paper - patch(pixels, y, x)).max() > 40}
    letters = set(PAGE.letters.values())
    digits = {(row, column + 1) for row, column in (PAGE.letters[place] for place in "abcde")}
    assert inked == letters | digits


@pytest.mark.parametrize("sheet", [PAGE, SLIP], ids=["page", "slip"])
def test_letters_and_digits_stand_beside_each_other(sheet):
    assert {(row, column): character for row, column, character in cells_of(("407", "15"), sheet)} == {
        **{sheet.letters[place]: place for place in "abcdef"},
        **dict(zip(((row, column + 1) for row, column in map(sheet.letters.get, "abcde")), "40715")),
    }


def patch(pixels: np.ndarray, row: int, column: int) -> np.ndarray:
    return pixels[row * 14 : row * 14 + 14, column * 14 : column * 14 + 14]


def test_questions_are_answered_right():
    numbers = ("407", "15")
    rng = np.random.default_rng(0)
    asked = {
        question.text: question.answer for kind in KINDS for question in (ask(rng, numbers, kind) for _ in range(40))
    }
    assert asked == {
        **{f"Read place {place}.": place + digit for place, digit in zip("abcde", "40715")},
        "Read row 1.": "a4 b0 c7",
        "Read row 2.": "d1 e5",
        "How many digits are on the page?": "5",
        "Which row has the larger number?": "1",
    }


def test_numbers_that_are_hard_to_compare_are_trained_on_more_often_than_asked_for():
    rng, chance = np.random.default_rng(0), sum(share**2 for share in LENGTHS)
    for draw, expected in ((draw_numbers, chance), (numbers_to_train_on, EQUALLY_LONG + (1 - EQUALLY_LONG) * chance)):
        drawn = [draw(rng) for _ in range(3000)]
        assert all(first != second for first, second in drawn)
        assert np.mean([len(first) == len(second) for first, second in drawn]) == pytest.approx(expected, abs=0.04)


def test_training_asks_about_such_numbers():
    """By chance 2, 4 or 6 digits are on 54.5% of the pages; on all of those with two numbers of one length."""
    tokenizer, rng = train_tokenizer(), np.random.default_rng(0)
    lengths = list(itertools.product(range(1, 4), repeat=2))
    even = sum(LENGTHS[first - 1] * LENGTHS[second - 1] for first, second in lengths if (first + second) % 2 == 0)
    expected = EQUALLY_LONG + (1 - EQUALLY_LONG) * even
    texts = [tokenizer.decode(pages_as_text.write_chat(tokenizer, rng)[0]) for _ in range(400)]
    drills = [tokenizer.decode(pages_as_text.write_drills(tokenizer, rng)[0]) for _ in range(400)]
    samples = [digit_pages._sample(np.random.default_rng(seed), "stage2") for seed in range(400)]
    pages = ["".join(turn.text for turn in turns) for image, turns in samples if image is not None]
    for asked, pattern in (
        (texts, r"on the page\?<\|im_end\|>\n<\|im_start\|>assistant\n(\d)"),
        (drills, r" digits(\d)"),
        (pages, r"on the page\?(\d)"),
    ):
        counts = [int(found[1]) for text in asked if (found := re.search(pattern, text))]
        assert len(counts) > 150
        assert np.mean([count % 2 == 0 for count in counts]) == pytest.approx(expected, abs=0.07)
    about_pages = [text for text in texts if "Which row" in text]
    alone = np.mean([text.count("<|im_start|>user") == 1 for text in about_pages])
    assert alone == pytest.approx(pages_as_text.COMPARISONS, abs=0.07)


def test_text_pages_are_as_long_as_visual_ones(make_processor, make_image):
    """The language model is pretrained on the layout that it will meet."""
    layout = make_processor().image_processor.layout((112, 112), several_images=False)
    tokens = pages_as_text._page(("407", "15"))
    assert len(tokens) == layout.num_tokens
    assert [token for token in tokens if token not in ".\u010a"] == [
        "Ġa",
        "4",
        "Ġb",
        "0",
        "Ġc",
        "7",
        "Ġd",
        "1",
        "Ġe",
        "5",
        "Ġf",
    ]
    newlines = [index for index, token in enumerate(tokens) if token == "\u010a"]
    assert newlines == [16 + 9 * row + 8 for row in range(8)]


def test_captions_copy_notes_out_patch_by_patch():
    tokenizer = train_tokenizer()
    assert caption_of([(0, 1, "7"), (1, 3, "b"), (3, 3, "0")]) == ".7..... b.......0"
    for seed in range(20):
        cells = note_cells(np.random.default_rng(seed))
        tokens = tokenizer.tokenize(caption_of(cells))
        assert tokens == pages_as_text._note(cells)
        shown = {4 * row + column: character for row, column, character in cells}
        assert [token.strip("\u0120") for token in tokens] == [shown.get(index, ".") for index in range(16)]


def test_resized_states_say_the_same():
    tower = SiglipVisionModel(
        SiglipVisionConfig(hidden_size=32, num_hidden_layers=3, num_attention_heads=2, image_size=28)
    )
    pixels = 3 * torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = tower(pixels, output_hidden_states=True).hidden_states
        pretrain._resize_states(tower, 0.25)
        after = tower(pixels, output_hidden_states=True).hidden_states
    assert len(after) == 4
    for state, resized in zip(before, after):
        torch.testing.assert_close(resized, 0.25 * state, atol=1e-3, rtol=1e-3)


def test_blurred_words_are_inexact_and_one_to_sixteen_times_as_large():
    torch.manual_seed(0)
    words = torch.randn(8, 50, 96)
    blurred = pretrain._blurred(words)
    size = (blurred / words).median(-1).values
    noise = blurred / size[..., None] - words
    assert 0.02 < noise.std() < 0.04
    assert 0.95 < size.min() < 1.2
    assert 13 < size.max() < 17
    assert 2.5 < size.median() < 6  # as often below four times as above


def test_tiles_are_labelled_where_they_are_inked():
    pixels, labels = pretrain.tiles([0], 30, test=True)
    assert pixels.shape == (30, 3, 56, 56)
    read = [index for index, of_tile in enumerate(labels) if (of_tile != pretrain.EMPTY).any()]
    assert 0.7 * len(labels) < len(read) < len(labels), "the rest are shrunken pages"
    for tile, of_tile in zip(pixels[read, 0].numpy(), labels[read].numpy()):
        for index, label in enumerate(of_tile):
            contrast = np.ptp(patch(tile, index // 4, index % 4))
            assert (contrast > 0.3) == (label != pretrain.EMPTY)
    assert set(labels.unique().tolist()) == set(range(17))


def test_the_tokenizer_has_single_digits_and_the_special_tokens():
    tokenizer = train_tokenizer()
    assert len(tokenizer) <= VOCABULARY
    for character in [*DIGITS, *(f" {letter}" for letter in "abcdef"), "\n", "."]:
        assert len(tokenizer(character)["input_ids"]) == 1, character
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.pad_token == "<|endoftext|>"
    ids = encode_prompt(tokenizer, (Turn("human", "<image>\nRead place c."),), images=1)
    assert "<image>\nRead place c.<|im_end|>" in tokenizer.decode(ids)


def test_pretraining_writes_two_checkpoints(tmp_path, capsys):
    command = ["demo", "pretrain", str(tmp_path / "models"), "--tower_steps", "2", "--language_model_steps", "2"]
    assert main(command) == 0
    tower = SiglipVisionModel.from_pretrained(tmp_path / "models" / "siglip")
    assert tower.config.num_hidden_layers == pretrain.TOWER_LAYERS
    assert Qwen2ForCausalLM.from_pretrained(tmp_path / "models" / "qwen2").config.vocab_size == VOCABULARY
    assert len(AutoTokenizer.from_pretrained(tmp_path / "models" / "qwen2")) <= VOCABULARY
    assert "of held-out characters" in capsys.readouterr().err
    assert main(command) == 2
    assert "is not empty" in capsys.readouterr().err
