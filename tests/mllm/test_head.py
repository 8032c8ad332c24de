"""The loss in chunks of positions: what it computes, and what it holds meanwhile."""

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.functional import cross_entropy, linear
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from llava.mllm import head
from llava.mllm.head import LanguageHead

WIDTH, VOCABULARY = 16, 300


def given(positions: int, dtype=torch.float32, vocabulary=VOCABULARY):
    """A head, hidden states, and labels of which every fifth is left out."""
    torch.manual_seed(0)
    module = LanguageHead(WIDTH, vocabulary).to(dtype)
    labels = torch.randint(0, vocabulary, (positions,))
    labels[::5] = -100
    return module, torch.randn(positions, WIDTH, dtype=dtype, requires_grad=True), labels


def of_all_logits(module, hidden, labels, num_items=None):
    """The same without chunks, as transformers writes it."""
    logits = linear(hidden, module.weight).float()
    if num_items is None:
        return cross_entropy(logits, labels)
    return cross_entropy(logits, labels, reduction="sum") / num_items


def results(compute, module, hidden, labels, num_items, scale):
    module.zero_grad()
    hidden.grad = None
    loss = compute(module, hidden, labels, num_items)
    (loss * scale).backward()
    return loss.detach(), hidden.grad, module.weight.grad


@pytest.mark.parametrize("num_items", [None, 37, torch.tensor(37)])
@pytest.mark.parametrize("chunk", [1, 7, 10])
def test_the_loss_and_its_gradients(monkeypatch, chunk, num_items):
    monkeypatch.setattr(head, "CHUNK", chunk)
    module, hidden, labels = given(45)
    expected = results(of_all_logits, module, hidden, labels, num_items, 3.0)
    found = results(LanguageHead.__call__, module, hidden, labels, num_items, 3.0)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)
    with torch.no_grad():
        torch.testing.assert_close(module(hidden, labels, num_items), expected[0])


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_chunk_is_computed_bit_for_bit_as_without(dtype, autocast):
    module, hidden, labels = given(45, dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        expected = results(of_all_logits, module, hidden, labels, 37, 2.0)
        found = results(LanguageHead.__call__, module, hidden, labels, 37, 2.0)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


def test_chunks_in_bfloat16_are_added_up_in_float32(monkeypatch):
    """The gradient of 256 chunks is nearly as exact as that of one; a sum in bfloat16 errs 8 times more."""
    monkeypatch.setattr(head, "CHUNK", 2)
    module, hidden, labels = given(512, torch.bfloat16)
    *_, at_once = results(of_all_logits, module, hidden, labels, None, 1.0)
    *_, found = results(LanguageHead.__call__, module, hidden, labels, None, 1.0)
    exact, precise = module.double(), hidden.detach().double().requires_grad_()
    *_, expected = results(of_all_logits, exact, precise, labels, None, 1.0)
    errors = [(gradient.double() - expected).norm() / expected.norm() for gradient in (at_once, found)]
    assert errors[1] < 1.5 * errors[0] < 0.01


def test_a_frozen_head_has_no_gradient_and_frozen_states_none():
    module, hidden, labels = given(45)
    module.requires_grad_(False)
    module(hidden, labels).backward()
    assert module.weight.grad is None
    assert hidden.grad.abs().sum() > 0
    module.requires_grad_(True)
    module(hidden.detach(), labels).backward()
    assert module.weight.grad.abs().sum() > 0
    module.requires_grad_(False)
    assert not module(hidden.detach(), labels).requires_grad


def test_without_a_supervised_position_gradients_are_zero_and_there():
    """Ranks that reduce gradients all need one of the same parameters."""
    module, hidden, labels = given(0)
    loss = module(hidden, labels, 5)
    loss.backward()
    assert loss == 0
    assert module.weight.grad.shape == (VOCABULARY, WIDTH)
    assert not module.weight.grad.any()
    assert hidden.grad.shape == (0, WIDTH)


class LiveBytes(TorchDispatchMode):
    """Counts the most bytes that tensors made under it held at once."""

    def __init__(self):
        super().__init__()
        self.storages, self.most = {}, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(output):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self.storages[storage.data_ptr()] = (StorageWeakRef(storage), storage.nbytes())
        self.storages = {key: value for key, value in self.storages.items() if not value[0].expired()}
        self.most = max(self.most, sum(size for _, size in self.storages.values()))
        return output


def bytes_a_position(compute) -> float:
    """By how much the most that a forward and backward pass holds grows with each position more."""
    held = []
    for positions in (2048, 4096):
        module, hidden, labels = given(positions, vocabulary=2000)
        with LiveBytes() as live:
            compute(module, hidden, labels, positions).backward()
        held.append(live.most)
    return (held[1] - held[0]) / 2048


def test_memory_does_not_grow_with_the_logits():
    logits = 2000 * 4  # float32, of one position
    assert bytes_a_position(of_all_logits) > 2 * logits
    assert bytes_a_position(LanguageHead.__call__) < 0.05 * logits


@pytest.mark.parametrize("tied", [True, False])
def test_the_model_as_it_is_trained(make_model, batch, monkeypatch, tied):
    """The head's gradient joins that of embeddings that are tied to it."""
    monkeypatch.setattr(head, "CHUNK", 4)
    model = make_model().train()
    if not tied:
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    labels = batch["input_ids"].clone()
    labels[:, : labels.shape[1] // 2] = -100
    found = []
    for skip_logits in (False, True):
        model.zero_grad()
        torch.manual_seed(0)  # the managers' noise
        output = model(**batch, labels=labels, skip_logits=skip_logits, num_items_in_batch=torch.tensor(100))
        output.loss.backward()
        found.append((output.loss, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}))
        assert (output.logits is None) == skip_logits
    torch.testing.assert_close(found[1][0], found[0][0])
    assert set(found[0][1]) == set(found[1][1])
    for name, gradient in found[0][1].items():
        torch.testing.assert_close(found[1][1][name], gradient, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


def test_a_head_of_another_vocabulary_gives_the_loss_too(make_model):
    model = make_model()
    model.resize_token_embeddings(331, mean_resizing=False)
    ids = torch.tensor([[5, 6, 7, 330]])
    output = model(input_ids=ids, labels=ids)
    assert output.logits.shape == (1, 4, 331)
    torch.testing.assert_close(model(input_ids=ids, labels=ids, skip_logits=True).loss, output.loss)
    assert model.lm_head.weight is model.get_input_embeddings().weight
