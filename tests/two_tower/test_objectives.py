"""What tasks' losses are, in one process and in two that share a batch."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from llava.errors import LlavaError
from llava.two_tower.objectives import check_negatives, count_items, drawn, negative_weights
from llava.two_tower.tasks import TASKS
from tests.train.run_ranks import run_ranks
from tests.two_tower.test_modeling import batch_of, fields_of
from tests.two_tower.tiny import tiny_model

SIZE, SHORT = 4, 5


def test_hard_negatives_are_drawn_by_their_weights():
    similarity = torch.tensor([[3.0, 1.0, 2.0, 0.0], [0.5, 9.0, 9.0, 9.0]])
    same = torch.tensor([[True, False, False, False], [False, True, True, False]])
    weights = negative_weights(similarity, same)
    expected = [[0, 1, 2, 0], [0.5, 0, 0, 9]]
    for row, values in enumerate(expected):
        exponentials = [torch.tensor(value).exp().item() if not same[row, i] else 0.0 for i, value in enumerate(values)]
        assert weights[row].tolist() == pytest.approx([one / sum(exponentials) for one in exponentials])
    draws = (torch.arange(10_000) + 0.5) / 10_000
    counts = drawn(weights[:1].expand(10_000, -1), draws).bincount(minlength=4) / 10_000
    torch.testing.assert_close(counts, weights[0], atol=1e-3, rtol=0)
    last = torch.tensor([1 - 2**-24])  # the largest number below one
    assert drawn(weights[1:], last).tolist() == [3]
    assert drawn(weights[:1], torch.zeros(1)).tolist() == [1]  # not the pair itself, whose weight is none
    far = negative_weights(torch.tensor([[1000.0, -1000.0, -1001.0]]), torch.tensor([[True, False, False]]))
    assert far[0].tolist() == pytest.approx([0, 0.7311, 0.2689], abs=1e-4)


def test_a_batch_without_negatives_is_refused():
    model = tiny_model("retrieval")
    for size, index, words in ((1, [0], "is one pair"), (3, [5, 5, 5], "has 3 pairs, all of one image")):
        batch = batch_of(model.config, size)
        with pytest.raises(LlavaError, match=words):
            model(**batch, image_index=torch.tensor(index), negative_draws=torch.zeros(size, 2))
    check_negatives(torch.tensor([[True, False], [False, True]]))


def test_temperature_stays_within_its_bounds_and_finds_back():
    model = tiny_model("retrieval")
    head, ones = model.contrastive, torch.ones(1, 1)
    for value, used in ((0.07, 0.07), (0.9, 0.5), (-0.3, 0.001)):
        head.temperature.data.fill_(value)
        head.temperature.grad = None
        similarity = head.similarity(ones, ones)
        assert similarity.item() == pytest.approx(1 / used, rel=1e-4)
        similarity.backward()
        assert head.temperature.grad.item() == pytest.approx(-1 / used**2, rel=1e-4)


def test_unlabelled_examples_have_logits_and_no_loss():
    for task in ("vqav2", "snli_ve", "nlvr2"):
        model = tiny_model(task, num_answers=5)
        batch = batch_of(model.config)
        second = {"pixel_values_2": batch["pixel_values"]} if task == "nlvr2" else {}
        output = model(**batch, **second)
        assert output.loss is None
        assert output.logits.shape == (3, {"vqav2": 5, "snli_ve": 3, "nlvr2": 2}[task])


def task_batch(model, size=SIZE):
    batch = batch_of(model.config, size)
    fields = fields_of(model.config, batch)
    batch |= {name: fields[name] for name in TASKS[model.config.task].fields}
    batch["attention_mask"][: size // 2, SHORT:] = 0  # so that halves are of different lengths
    if "mlm_labels" in batch:
        batch["mlm_labels"][0] = -100  # so that halves have different numbers of masked words
        batch["mlm_labels"][batch["attention_mask"] == 0] = -100
    if "image_index" in batch:
        batch["image_index"] = torch.tensor([7, 3, 7, 5])
    return batch


def rows_of(batch, rows, padded=False):
    """A part of a batch, unless padded without padding that all its texts have; with its false pairs' false images."""
    part = {name: tensor[rows] for name, tensor in batch.items()}
    if "itm_labels" in batch:
        false = batch["itm_labels"] == 0
        part["false_pixel_values"] = batch["false_pixel_values"][(false.cumsum(0) - 1)[rows][false[rows]]]
    if padded:
        return part
    length = part["attention_mask"].sum(1).max()
    texts = {"input_ids", "attention_mask", "mlm_input_ids", "mlm_labels"}
    return {name: tensor[:, :length] if name in texts else tensor for name, tensor in part.items()}


def losses_and_gradients(task, rows, items=False):
    """Of a part of the batch, as every process of a step has them before they are averaged."""
    model = tiny_model(task)
    batch = rows_of(task_batch(model), rows, padded=task == "retrieval")  # whose ranks have texts of one length
    counts = count_items(task, task_batch(model)) if items else None
    output = model(**batch, num_items_in_batch=counts)
    output.loss.backward()
    return torch.cat([output.loss.detach()[None], *(one.grad.flatten() for one in model.parameters())])


def in_one_of_two(folder: Path) -> None:
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    rows = slice(rank * SIZE // 2, (rank + 1) * SIZE // 2)
    for task in ("pretrain", "vqav2", "retrieval"):
        for items in (False, True):
            found = losses_and_gradients(task, rows, items)
            dist.all_reduce(found)  # given the step's numbers, losses add up; else the ranks' mean counts
            torch.save(found if items else found / 2, folder / f"{task}-{items}-{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_have_the_loss_and_the_gradient_of_one(tmp_path):
    run_ranks(in_one_of_two, tmp_path, processes=2, folder=tmp_path, timeout=200)
    for task in ("pretrain", "vqav2", "retrieval"):
        expected = losses_and_gradients(task, slice(None))
        assert torch.equal(expected, losses_and_gradients(task, slice(None), items=True))
        for items in (False, True):
            for rank in range(2):
                found = torch.load(tmp_path / f"{task}-{items}-{rank}.pt")
                torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("query", ["own", "fused"])
def test_padding_that_all_texts_have_changes_nothing(query):
    for task in TASKS:
        model = tiny_model(task, query=query).eval()
        batch = task_batch(model)
        batch["attention_mask"][:, SHORT:] = 0
        if "mlm_labels" in batch:
            batch["mlm_labels"][:, SHORT:] = -100
        cut = rows_of(batch, slice(None))
        assert cut["input_ids"].shape == (SIZE, SHORT)
        padded, short = model(**batch), model(**cut)
        torch.testing.assert_close(short.logits, padded.logits, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(short.loss, padded.loss, atol=1e-5, rtol=1e-5)


def test_micro_batches_add_up():
    """What a step's numbers are given for: halves of different numbers of masked words, one after the other."""
    whole = losses_and_gradients("pretrain", slice(None))
    halves = [losses_and_gradients("pretrain", rows, items=True) for rows in (slice(0, 2), slice(2, 4))]
    torch.testing.assert_close(sum(halves), whole, atol=1e-4, rtol=1e-3)
