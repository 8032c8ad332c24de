import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch.utils.data import DataLoader

from llava.data.pairs.collator import collate_pairs
from llava.data.pairs.dataset import PairDataset, PairSampler, Place
from llava.data.pairs.mixture import load_pairs, read_pair_mixture
from llava.data.pairs.processor import PairProcessor, check_tokenizer
from llava.errors import DataError
from llava.two_tower.tasks import MIXTURES
from tests.data.pairs.conftest import ENTAILMENT, QUESTIONS, STATEMENTS, captions, picture, write_arrow, write_json


def store_of(path, kind=None):
    return load_pairs(read_pair_mixture(path, kind), "all").store


@pytest.fixture
def coco(tmp_path):
    return store_of(write_arrow(tmp_path / "coco.arrow", captions(40)))


def red(pixels, processor):
    """Which of captions()' images a tensor is of."""
    return round(float(pixels[0, 0, 0] * processor.std[0] + processor.mean[0]) * 255)


def batches(dataset, epoch, world_size, batch_size, workers=0):
    """The batches of all ranks, in order, each step's put together."""
    sampler = PairSampler(len(dataset), batch_size=batch_size, world_size=world_size, seed=dataset.seed)
    sampler.set_epoch(epoch)
    loader = DataLoader(dataset, batch_size, sampler=sampler, collate_fn=collate_pairs, num_workers=workers)
    of_ranks = list(loader)
    return [collate(of_ranks[first : first + world_size]) for first in range(0, len(of_ranks), world_size)]


def collate(parts):
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0] if name != "samples"}


PRETRAIN = {"transform": "randaug_color", "parts": ("mlm", "itm", "retrieval"), "seed": 3}


def test_one_and_several_ranks_see_the_same(coco, processor):
    dataset = PairDataset(coco, processor, **PRETRAIN)
    alone = batches(dataset, 1, world_size=1, batch_size=12)
    parted = batches(dataset, 1, world_size=3, batch_size=4)
    by_workers = batches(dataset, 1, world_size=2, batch_size=6, workers=2)
    assert len(alone) == len(coco) // 12
    for other in (parted, by_workers):
        for batch, same in zip(alone, other, strict=True):
            assert batch.keys() == same.keys()
            assert all(torch.equal(batch[name], same[name]) for name in batch)
    assert not torch.equal(alone[0]["pixel_values"], batches(dataset, 2, 1, 12)[0]["pixel_values"])


def test_every_epoch_draws_anew(coco, processor):
    dataset = PairDataset(coco, processor, **PRETRAIN)
    first, again, other = (dataset[Place(epoch, 0, 5)] for epoch in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in ("pixel_values", "mlm_labels", "negative_draws"))
    assert not torch.equal(first["pixel_values"], other["pixel_values"])
    assert not torch.equal(first["negative_draws"], other["negative_draws"])
    masks = {tuple(dataset[Place(epoch, 0, 5)]["mlm_labels"].tolist()) for epoch in range(20)}
    assert len(masks) > 3


def test_a_batch_has_the_fields_of_its_parts(coco, processor):
    batch = batches(PairDataset(coco, processor, **PRETRAIN), 0, 1, 6)[0]
    shapes = {name: (tuple(value.shape), value.dtype) for name, value in batch.items()}
    images, texts = ((6, 3, 16, 16), torch.float32), ((6, 12), torch.int64)
    assert shapes == {
        **dict.fromkeys(("input_ids", "attention_mask", "mlm_input_ids", "mlm_labels"), texts),
        "pixel_values": images,
        "false_pixel_values": ((3, 3, 16, 16), torch.float32),
        **dict.fromkeys(("itm_labels", "image_index"), ((6,), torch.int64)),
        "negative_draws": ((6, 2), torch.float32),
    }
    assert ((batch["negative_draws"] >= 0) & (batch["negative_draws"] < 1)).all()


def test_every_pair_comes_at_most_once_and_others_are_left_out(coco):
    sampler = PairSampler(len(coco), batch_size=6, accumulation=3)
    orders = []
    for epoch in range(2):
        sampler.set_epoch(epoch)
        orders.append([place.pair for place in sampler])
    assert [len(set(order)) for order in orders] == [72, 72]
    assert len(coco) == 79
    assert set(range(79)) - set(orders[0]) != set(range(79)) - set(orders[1])
    with pytest.raises(DataError, match="one optimizer step takes 80 pairs, but there are only 79"):
        PairSampler(79, batch_size=40, world_size=2)


def test_half_of_the_images_are_false(coco, processor):
    dataset = PairDataset(coco, processor, transform="center", parts=("itm",), seed=1)
    items = [dataset[Place(0, position, position)] for position in range(78)]
    labels = np.array([item["itm_labels"] for item in items]).reshape(-1, 2)
    assert (labels.sum(1) == 1).all()
    assert 8 < labels[:, 0].sum() < 31  # of 39
    for item in items:
        assert ("false_pixel_values" in item) == (not item["itm_labels"])
    others = [item for item in items if not item["itm_labels"]]
    assert all(red(item["pixel_values"], processor) != red(item["false_pixel_values"], processor) for item in others)
    assert len({red(item["false_pixel_values"], processor) for item in others}) > 15
    batch = collate_pairs(items[:6])
    assert batch["itm_labels"].tolist() == [item["itm_labels"] for item in items[:6]]
    assert torch.equal(batch["false_pixel_values"], torch.stack([item["false_pixel_values"] for item in others[:3]]))


def test_padding_that_all_texts_have_is_cut_off(coco, processor):
    dataset = PairDataset(coco, processor, transform="center", parts=("mlm", "itm"))
    items = [dataset[number] for number in range(6)]
    padded, cut = collate_pairs(items), collate_pairs(items, padded=False)
    lengths = padded["attention_mask"].sum(1)
    assert 1 < lengths.max() < processor.text_length
    texts = {"input_ids", "attention_mask", "mlm_input_ids", "mlm_labels"}
    assert texts < padded.keys() == cut.keys()
    for name in cut.keys() - {"samples"}:
        expected = padded[name][:, : lengths.max()] if name in texts else padded[name]
        assert torch.equal(cut[name], expected)


def test_masks_are_as_berts(tmp_path, processor):
    rows = [{"image": picture((0, 0, 0)), "caption": ["a red circle is left of the green square"] * 400}]
    dataset = PairDataset(
        store_of(write_arrow(tmp_path / "c.arrow", rows)), processor, transform="center", parts=("mlm",)
    )
    items = collate_pairs([dataset[index] for index in range(400)])
    ids, masked, labels = items["input_ids"], items["mlm_input_ids"], items["mlm_labels"]
    predicted = labels != -100
    assert not predicted[ids <= 2].any()  # begin, end and padding
    assert torch.equal(labels[predicted], ids[predicted])
    assert torch.equal(masked[~predicted], ids[~predicted])
    assert predicted.sum().item() / 400 == pytest.approx(0.15 * 9, rel=0.1)
    of_predicted = masked[predicted]
    assert (of_predicted == processor.tokenizer.mask_token_id).float().mean().item() == pytest.approx(0.8, abs=0.06)
    assert (of_predicted == ids[predicted]).float().mean().item() == pytest.approx(0.1, abs=0.04)


def test_targets_and_labels(tmp_path, processor):
    answers = ("2", "red", "no")
    vqa = PairDataset(
        store_of(write_arrow(tmp_path / "vqa.arrow", QUESTIONS), "questions"),
        replace(processor, answers=answers),
        transform="squash",
        parts=("answers",),
    )
    targets = collate_pairs([vqa[index] for index in range(3)])["targets"]
    assert targets.tolist() == [[0, 1, 0], [0, 0, 0], [pytest.approx(0.6), 0, 0]]  # yes and green are no answers here
    nlvr = PairDataset(
        store_of(write_arrow(tmp_path / "n.arrow", STATEMENTS)), processor, transform="squash", parts=("label",)
    )
    batch = collate_pairs([nlvr[0], nlvr[1]])
    assert batch["labels"].tolist() == [1, 0]
    assert red(batch["pixel_values"][0], processor) == 1
    assert red(batch["pixel_values_2"][0], processor) == 2
    snli = PairDataset(
        store_of(write_arrow(tmp_path / "s.arrow", ENTAILMENT)), processor, transform="squash", parts=("label",)
    )
    assert [snli[index]["labels"] for index in range(2)] == [2, 0]
    with pytest.raises(DataError, match="no answers: there is no vocabulary"):
        PairDataset(vqa.store, processor, transform="squash", parts=("answers",))


def test_the_one_answer_of_a_vgqa_question_is_right(tmp_path, processor):
    """With the reference's scores and without any, in the shipped split that adds VG-QA to VQAv2."""
    shipped = yaml.safe_load(Path(MIXTURES, "vqav2.yaml").read_text())
    mixture = tmp_path / "vqav2.yaml"
    mixture.write_text(yaml.safe_dump(shipped | {"root": "."}))
    question = {"image": picture((0, 0, 0)), "questions": ["how many"]}
    people = ["2"] * 2 + ["red"] * 8
    for file, fields in {
        "vqav2_train_fix": {"answers": [people]},
        "vgqa_train": {"answers": [["red"]], "answer_labels": [[1]], "answer_scores": [[1.0]]},
        "vgqa_val": {"answers": [["Two."]]},
    }.items():
        write_arrow(tmp_path / f"{file}.arrow", [question | fields])
    store = load_pairs(read_pair_mixture(mixture), "train_vgqa").store
    dataset = PairDataset(store, replace(processor, answers=("2", "red", "no")), transform="squash", parts=("answers",))
    targets = collate_pairs([dataset[number] for number in range(len(dataset))])["targets"]
    assert targets.tolist() == [[pytest.approx(0.6), 1, 0], [0, 1, 0], [1, 0, 0]]


def test_images_by_path_and_images_that_cannot_be_read(tmp_path, processor):
    Image.new("RGB", (8, 8), (9, 0, 0)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_text("no image")
    rows = [{"image": name, "caption": "a page"} for name in ("a.png", "b.png", "c.png", "../a.png")]
    store = store_of(write_json(tmp_path / "j.jsonl", rows), "captions")
    dataset = PairDataset(store, processor, transform="center", image_folder=tmp_path)
    assert red(dataset[0]["pixel_values"], processor) == 9
    for index, reason in ((1, "not an image"), (2, "does not exist"), (3, "climbs out of the image folder")):
        with pytest.raises(DataError, match=rf"j.jsonl row {index + 1} caption 1: .*{reason}"):
            dataset[index]
    noting = PairDataset(
        store,
        processor,
        transform="center",
        parts=("mlm", "itm", "retrieval"),
        image_folder=tmp_path,
        notes_faults=True,
    )
    item = noting[1]
    assert "not an image" in item["sample"].fault
    batch = collate_pairs([item])
    assert batch["itm_labels"].tolist() == [1]
    assert batch["false_pixel_values"].shape == (0, 3, 16, 16)


def test_a_processor_is_kept_in_a_model_folder(tmp_path, processor):
    kept = replace(processor, answers=("yes", "no"), mean=(0.5, 0.5, 0.5))
    kept.save_pretrained(tmp_path / "model")
    again = PairProcessor.from_pretrained(tmp_path / "model")
    assert again.encode("a red circle") == processor.encode("a red circle")
    assert replace(again, tokenizer=None) == replace(kept, tokenizer=None)
    colorless = {"crop_size": {"height": 16}, "image_mean": [0.5] * 3}
    (tmp_path / "model/preprocessor_config.json").write_text(json.dumps(colorless))
    with pytest.raises(DataError, match=r"its tokenizer or preprocessor_config\.json cannot be read: 'image_std'"):
        PairProcessor.from_pretrained(tmp_path / "model")
    (tmp_path / "model/preprocessor_config.json").unlink()
    with pytest.raises(DataError, match=r"its tokenizer or preprocessor_config\.json cannot be read"):
        PairProcessor.from_pretrained(tmp_path / "model")


def test_a_tokenizer_of_another_tower_is_refused(tokenizer):
    check_tokenizer(tokenizer, len(tokenizer), 1, "T")
    with pytest.raises(DataError, match=rf"has {len(tokenizer)} tokens, but the text tower T embeds 20"):
        check_tokenizer(tokenizer, 20, 1, "T")
    with pytest.raises(DataError, match="pads with token 1, but the text tower T with 0"):
        check_tokenizer(tokenizer, 100, 0, "T")
