import numpy as np
import torch
from transformers import SiglipVisionModel

from llava.cli import main
from llava.demo import text_tower
from llava.demo.text_pages import Layout, compose
from llava.demo.text_tower import (
    ALPHABET,
    NOTHING,
    SLOTS,
    Reader,
    TowerSize,
    draw_sheet,
    labels_of,
    letters_of,
    windows,
)

LAYOUT = Layout(tile=56, sizes=(9, 11))


def test_every_letter_that_can_be_written_is_known():
    from llava.demo.prose import topics

    written = {
        letter for part in (False, True) for topic in topics(part) for words in topic for letter in "".join(words)
    }
    assert written <= set(ALPHABET)
    assert len(set(ALPHABET)) == len(ALPHABET) == NOTHING


def test_labels_are_the_letters_in_each_patch():
    """From the corner of a window of 28 pixels, four patches: no fourth letter of a patch, none from outside."""
    letters = [(3, 5, "a"), (1, 5, "b"), (13.9, 5, "c"), (12, 4, "d"), (14, 13, "e"), (20, 20, "f"), (-1, 5, "g")]
    letters += [(28, 5, "h"), (5, 28, "i"), (20, 15, "j")]
    found = labels_of(np.array([(x, y, ALPHABET.index(letter)) for x, y, letter in letters]), 28)
    assert ["".join("." if index == NOTHING else ALPHABET[index] for index in row) for row in found] == [
        *("dba", "e..", "...", "jf."),
    ]
    assert found.shape == (4, SLOTS)


def test_letters_stand_where_their_word_does():
    page = compose(np.random.default_rng(0), LAYOUT, test=False)
    letters = letters_of(page)
    assert "".join(ALPHABET[int(index)] for index in letters[:, 2]) == "".join(placed.word for placed in page.placed)
    assert (letters[:, :2] > 0).all()
    assert (letters[:, :2] < page.side).all()


def test_windows_with_labels_have_ink_and_those_without_have_none():
    sheets = [draw_sheet(np.random.default_rng(index), LAYOUT, test=False) for index in range(4)]
    pixels, labels = windows([0], sheets, 30, 56)
    assert pixels.shape == (30, 3, 56, 56)
    assert labels.shape == (30, 16, SLOTS)
    inked = torch.tensor([[np.ptp(patch) > 0.3 for patch in _patches(tile)] for tile in pixels[:, 0].numpy()])
    lettered = labels[..., 0] != NOTHING
    assert inked[lettered].float().mean() > 0.98, "commas are small"
    assert lettered[inked].float().mean() > 0.6, "the others are touched from beside"
    again, _ = windows([0], sheets, 30, 56)
    assert torch.equal(again, pixels)


def _patches(tile):
    return tile.reshape(4, 14, 4, 14).transpose(0, 2, 1, 3).reshape(16, 14, 14)


def test_a_reader_learns_tiles_by_heart():
    sheets = [draw_sheet(np.random.default_rng(index), LAYOUT, test=False) for index in range(4)]
    batch = windows([0], sheets, 4, 28)
    torch.manual_seed(0)
    reader = Reader(TowerSize(width=64, layers=3, heads=2), 28)
    assert text_tower._share_read(reader, batch) < 0.1
    text_tower._train(reader, lambda step: batch, 120)
    assert text_tower._share_read(reader, batch) > 0.9


def test_a_tower_is_written(tmp_path, capsys):
    sizes = ["--width", "64", "--layers", "3", "--heads", "2", "--tile", "56", "--font_sizes", "9", "11"]
    command = ["demo", "text_tower", str(tmp_path / "siglip"), "--steps", "2", "--sheets", "3", *sizes]
    assert main(command) == 0
    tower = SiglipVisionModel.from_pretrained(tmp_path / "siglip")
    assert tower.config.num_hidden_layers == 3
    assert tower.config.image_size == 56
    assert (tmp_path / "siglip" / "preprocessor_config.json").is_file()
    assert "of letters on pages of test topics read right" in capsys.readouterr().err
    again = [*command[:2], str(tmp_path / "again"), *command[3:]]
    assert main(again) == 0
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("siglip", "again")]
    assert weights[0] == weights[1]
    capsys.readouterr()
    assert main([*again[:2], str(tmp_path / "third"), *again[3:], "--heads", "5"]) == 2
    assert "whole patches of 14, a width of 64 whole heads (5)" in capsys.readouterr().err
