"""The small ViT of emoji pages and the floors, on stand-in drawings and a text tower of a few random weights."""

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, CLIPVisionModel, PreTrainedTokenizerFast

from llava.data.pairs.vocabulary import read_answers
from llava.demo import emoji_towers
from llava.demo.emoji_data import write_emoji_pages
from llava.demo.emoji_floor import _ranks, _ridge, _with_one, blind_floor, render, retrieval_floor
from llava.demo.emoji_towers import Cells, Namer, TowerSize, embed_texts, write_image_tower
from llava.errors import LlavaError
from tests.demo.emoji_stand_ins import COLORS, LEVELS, STAND_INS

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "thing", "where", "how", "many", "what", "is", *map(str, LEVELS)]


@pytest.fixture(scope="module")
def towers(tmp_path_factory):
    """A folder with `text`, random, and `image`, of two steps."""
    folder = tmp_path_factory.mktemp("towers")
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]").save_pretrained(folder / "text")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        initializer_range=1.0,
    )
    BertModel(config, add_pooling_layer=False).save_pretrained(folder / "text")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(emoji_towers, "BATCH", 4)
        named = write_image_tower(folder / "image", folder / "text", STAND_INS, TowerSize(24, 2, 2), steps=2)
    assert 0 <= named.trained <= 1
    assert 0 <= named.unseen <= 1
    return folder


def test_pages_of_cells_show_what_their_labels_say():
    names = STAND_INS.parts["val"]
    pixels, labels = Cells(STAND_INS, names, seed=0).pages(np.random.default_rng(0), 12)
    mean, std = (torch.tensor(value)[:, None, None] for value in (emoji_towers.CLIP_MEAN, emoji_towers.CLIP_STD))
    sheets = ((pixels * std + mean) * 255).round().to(int)
    assert sheets.shape == (12, 3, 96, 96)
    assert labels.shape == (12, 9)
    for sheet, of_page in zip(sheets, labels.tolist()):
        for place, label in enumerate(of_page):
            row, column = divmod(place, 3)
            cell = sheet[:, 32 * row : 32 * row + 32, 32 * column : 32 * column + 32].flatten(1)
            if label == len(names):
                assert (cell == cell[:, :1]).all()
                assert cell.min() >= 215
            else:
                color = torch.tensor(COLORS[names[label]])[:, None]
                assert (cell == color).all(0).sum() > 200
    assert {len(names)} < set(labels.flatten().tolist())


def test_the_image_tower_is_saved_as_clips(towers):
    tower = CLIPVisionModel.from_pretrained(towers / "image")
    assert (tower.config.hidden_size, tower.config.image_size, tower.config.num_hidden_layers) == (24, 96, 2)
    with pytest.raises(LlavaError, match=r"a width of 24 must be whole heads \(5\)"):
        write_image_tower(towers / "other", towers / "text", STAND_INS, TowerSize(24, 1, 5), steps=1)


def test_places_learn_to_tell_where_they_are(towers):
    names = STAND_INS.parts["val"]
    namer = Namer(TowerSize(24, 1, 2), embed_texts(towers / "text", names))
    with torch.no_grad():
        namer.position.weight.copy_(20 * torch.eye(9, 24))
        namer.position.bias.zero_()
    places = torch.eye(9, 24)[None].repeat(2, 1, 1)
    assert namer.position_loss(places).item() < 1e-6
    assert namer.position_loss(places.roll(1, dims=1)).item() == pytest.approx(20, abs=1e-3)
    namer.loss(*Cells(STAND_INS, names, seed=0).pages(np.random.default_rng(0), 2)).backward()
    assert namer.position.weight.grad.abs().sum() > 0


def test_texts_are_embedded_one_by_one_as_in_a_batch(towers):
    texts = ["thing 0 40", "where is thing 80 120 160", "many"]
    together = embed_texts(towers / "text", texts)
    torch.testing.assert_close(torch.cat([embed_texts(towers / "text", [text]) for text in texts]), together)
    torch.testing.assert_close(together.norm(dim=-1), torch.ones(3))


def test_ridge_regression_solves_the_stacked_least_squares():
    """The penalty as further rows, for numpy's least squares."""
    rng = np.random.default_rng(0)
    features, wanted = rng.standard_normal((30, 4)), rng.standard_normal((30, 3))
    stacked = np.concatenate([np.c_[features, np.ones(30)], 2.0**0.5 * np.eye(5)])
    expected = np.linalg.lstsq(stacked, np.concatenate([wanted, np.zeros((5, 3))]), rcond=None)[0]
    found = _ridge(torch.tensor(features).float(), torch.tensor(wanted).float(), 2.0)
    torch.testing.assert_close(found, torch.tensor(expected).float(), atol=1e-5, rtol=1e-5)


def test_recalls_are_those_of_sorted_similarities():
    rng = torch.Generator().manual_seed(0)
    texts, images = torch.randn(24, 5, generator=rng), torch.randn(12, 4, generator=rng)
    index, fit = torch.arange(24) // 2, torch.randn(5, 5, generator=rng)
    recalls = _ranks((texts, images, index), fit).recalls()
    mapped = _with_one(images) @ fit
    similar = torch.cosine_similarity(texts[:, None], mapped[None], dim=-1)
    for k in (1, 5, 10):
        of_text = [index[row].item() in similar[row].argsort(descending=True)[:k] for row in range(24)]
        of_image = [
            bool({2 * row, 2 * row + 1} & set(similar[:, row].argsort(descending=True)[:k].tolist()))
            for row in range(12)
        ]
        assert recalls[f"ir_r{k}"] == pytest.approx(sum(of_text) / 24)
        assert recalls[f"tr_r{k}"] == pytest.approx(sum(of_image) / 12)
    assert recalls.pop("r_mean") == pytest.approx(sum(recalls.values()) / 6)


def test_equal_similarities_count_against_the_floor():
    """As they count against a trained model: what tells nothing apart finds nothing."""
    texts, images = torch.ones(22, 5), torch.ones(11, 4)
    assert set(_ranks((texts, images, torch.arange(22) // 2), torch.zeros(5, 5)).recalls().values()) == {0}


def test_floors_of_a_small_data_set(towers, tmp_path):
    write_emoji_pages(tmp_path, STAND_INS, {"train": 12, "val": 6, "test": 6}, names=["questions", "retrieval"])
    ranks = retrieval_floor(towers / "text", towers / "image", tmp_path / "retrieval.yaml")
    assert {split: (len(of.of_texts), len(of.of_images)) for split, of in ranks.items()} == {
        "val": (12, 6),
        "test": (12, 6),
        "names": (43, 43),
        "drawings": (43, 43),
    }
    answers = read_answers(tmp_path / "answers.json")
    blind = blind_floor(towers / "text", tmp_path / "questions.yaml", answers)
    assert set(blind) <= {"all", "what", "where", "where_new", "there", "there_new", "count"}
    printed = render(ranks, blind)
    assert "IR@10" in printed
    assert all(f"\n{name}" in printed for name in (*ranks, *blind))
