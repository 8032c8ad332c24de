"""Samples that share a row compute what each computes alone, whatever stands beside them.

flash_attention_2 is played by a slow function of its signature; no GPU is needed to see where it is told that samples
begin.
"""

import copy
from itertools import pairwise

import pytest
import torch
from transformers import modeling_flash_attention_utils

from llava.data.collator import Collator
from llava.data.schema import Sample, Turn
from llava.mllm.attention import SDPA_BY_SAMPLE, packed_lengths
from llava.mllm.questions import questions_of_batch, sequences_of_batch

IMPLEMENTATIONS = [SDPA_BY_SAMPLE, "sdpa", "eager", "flash_attention_2"]
# The managers' query, and which tokens they ask with.
MANAGERS = [(None, "turn"), ("self", "turn"), ("last", "turn"), ("average", "released"), ("cross", "turn")]
LATER_IMAGE = (("What is 01 and 2?", "A red car."), ("A car?\n<image>", "Yes."))


@pytest.fixture(scope="module")
def items(make_processor, make_image):
    """Encoded samples of every kind; the labels have the first token of each, as the released rule makes them."""
    processor = make_processor()
    clip = [make_image(64, 48, 20 + frame) for frame in range(3)]
    samples = [
        ((("What is the system?", "A user."),), [], []),
        ((("<image>\nWhat is in the picture?", "A red car."),), [make_image(56, 56, 1)], []),
        (LATER_IMAGE, [make_image(150, 97, 2)], []),
        ((("<image> <image>\nWhich?", "A car. A car."),), [make_image(60, 40, 3), make_image(40, 90, 4)], []),
        ((("<video> <image>\nWhich picture?", "0123"),), [make_image(100, 70, 5)], [clip]),
        ((("<video>", "A red car."),), [], [clip[:2]]),
    ]
    encoded = []
    for turns, images, videos in samples:
        turns = tuple(Turn(role, text) for turn in turns for role, text in zip(("human", "gpt"), turn))
        rules = {"template": "qwen_1_5", "label_rule": "released", "max_length": 1024}
        sample = Sample("", turns, ("",) * len(images), "", ("",) * len(videos))
        encoded.append(processor.encode_sample(sample, images, videos, **rules))
    filler = {"input_ids": [processor.tokenizer.pad_token_id], "labels": [-100], "num_images": 0, "num_videos": 0}
    assert all(item["labels"][0] != -100 for item in encoded)
    return [*encoded[:3], filler, filler, *encoded[3:]]


@pytest.fixture
def use(monkeypatch):
    """A function: makes a model's language model use an attention implementation, with sdpa in the tower."""
    monkeypatch.setattr(modeling_flash_attention_utils, "_loaded_implementation", None)
    for name in ("_flash_fn", "_flash_varlen_fn", "_flash_with_kvcache_fn", "_pad_fn", "_unpad_fn"):
        monkeypatch.setattr(modeling_flash_attention_utils, name, None)
    functions = (None, slow_varlen, None, None, None)
    monkeypatch.setattr(modeling_flash_attention_utils, "_process_flash_kwargs_fn", None)
    monkeypatch.setattr(modeling_flash_attention_utils, "_lazy_imports", lambda *_, **__: functions)

    def choose(model, implementation: str):
        if implementation == "flash_attention_2":  # transformers would look for the package
            model.model.language_model.config._attn_implementation = implementation
        else:
            model.model.language_model.set_attn_implementation(implementation)
        return model

    return choose


def slow_varlen(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p, softmax_scale, causal):
    """flash_attn_varlen_func: (tokens, heads, width) of sequences one behind the other."""
    assert causal
    assert cu_seqlens_q.dtype == torch.int32
    bounds = cu_seqlens_q.tolist()
    assert bounds == cu_seqlens_k.tolist()
    assert max_seqlen_q == max_seqlen_k == max(end - begin for begin, end in pairwise(bounds))
    k, v = (states.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for states in (k, v))
    mixed = []
    for begin, end in pairwise(bounds):
        scores = torch.einsum("qhd,khd->hqk", q[begin:end], k[begin:end]) * softmax_scale
        later = torch.ones(end - begin, end - begin, dtype=torch.bool).triu(1)
        mixed.append(torch.einsum("hqk,khd->qhd", scores.masked_fill(later, -torch.inf).softmax(-1), v[begin:end]))
    return torch.cat(mixed)


def pack(items: list[dict]) -> dict:
    return Collator(pad_token_id=0, packing=True)(items)


@pytest.fixture(scope="module")
def one_by_one(items):
    """A function: a model to the logits (sum of L, V), the loss and all gradients of its samples, each by itself."""

    def run(model) -> tuple[torch.Tensor, float, dict]:
        batches = [Collator(pad_token_id=0)([item]) for item in items]
        number = sum(int((batch["labels"][:, 1:] != -100).sum()) for batch in batches)
        model.zero_grad()
        logits, loss = [], 0.0
        for batch in batches:
            output = model(**batch, num_items_in_batch=number)
            output.loss.backward()
            logits.append(output.logits[0].detach())
            loss += output.loss.item()
        return torch.cat(logits), loss, gradients(model)

    return run


def gradients(model) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("query", "question"), MANAGERS)
def test_packed_samples_equal_each_alone(make_managed, items, one_by_one, use, query, question):
    """Logits at every position, the loss and every gradient, with every implementation. No cache is made."""
    model = make_managed(query, question=question)
    logits, loss, expected = one_by_one(model)
    assert {name.split(".")[1] for name in expected} >= {"vision_tower", "multi_modal_projector", "fusion"}
    batch = pack(items)
    assert batch["input_ids"].shape == (1, len(logits))
    for implementation in IMPLEMENTATIONS if query in (None, "cross") else IMPLEMENTATIONS[:1]:
        use(model, implementation).zero_grad()
        output = model(**batch)
        assert output.past_key_values is None
        torch.testing.assert_close(output.logits[0], logits, atol=2e-5, rtol=1e-4)
        assert output.loss.item() == pytest.approx(loss, abs=1e-5)
        output.loss.backward()
        compare(gradients(model), expected)


def compare(found: dict, expected: dict) -> None:
    assert set(found) == set(expected)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=2e-6, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("query", [None, "cross"])
def test_as_it_is_trained(make_managed, items, one_by_one, use, query):
    """Layers checkpointed, no cache, the loss at supervised positions alone."""
    model = make_managed(query, jitter="none").train()
    model.activation_checkpointing_enable({"use_reentrant": False})
    _, loss, expected = one_by_one(model)
    use(model, SDPA_BY_SAMPLE).zero_grad()
    output = model(**pack(items), skip_logits=True, use_cache=False)
    output.loss.backward()
    assert output.loss.item() == pytest.approx(loss, abs=1e-5)
    compare(gradients(model), expected)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_sample_does_not_see_the_one_before(make_managed, items, use, implementation):
    """Another question, another picture: what follows in the row stays as it is, to the last bit."""
    model = use(make_managed("cross"), implementation)
    before, after = items[2], items[5]
    other = copy.deepcopy(before)
    other["input_ids"][20:22] = [50, 60]
    assert len({tuple(item["input_ids"]) for item in (before, other)}) == 2
    other["pixel_values"] = before["pixel_values"].flip(0)
    with torch.no_grad():
        logits, changed = (model(**pack([first, after])).logits[0] for first in (before, other))
    length = len(before["input_ids"])
    assert torch.equal(changed[length:], logits[length:])
    assert (changed[:length] - logits[:length]).abs().amax(-1).count_nonzero() > length / 2


def test_generation_is_that_of_sdpa(make_managed, use, batch):
    model = make_managed("cross")
    settings = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False}
    expected = model.generate(**batch, **settings)
    assert torch.equal(use(model, SDPA_BY_SAMPLE).generate(**batch, **settings), expected)


def test_layers_with_a_sliding_window(make_model, items, one_by_one, use):
    window = {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 3}
    model = make_model(fusion=None, **window)
    assert set(model.config.text_config.layer_types) == {"full_attention", "sliding_attention"}
    logits, _, _ = one_by_one(model)
    for implementation in (SDPA_BY_SAMPLE, "eager"):
        with torch.no_grad():
            found = use(model, implementation)(**pack(items)).logits[0]
        torch.testing.assert_close(found, logits, atol=2e-5, rtol=1e-4)


def test_compiled_layers(make_managed, items, one_by_one, use):
    """Dynamo alone: other lengths in every step break the graph at the attention and are not traced anew each time."""
    model = use(make_managed(None, jitter="none"), SDPA_BY_SAMPLE).train()
    for layer in model.model.language_model.layers[:2]:
        layer.compile(backend="eager", dynamic=True)
    compiled = torch._dynamo.utils.counters["stats"]
    for count in (2, 3, 4, 6):
        packed = model(**pack(items[:count]), use_cache=False).logits[0]
        if count == 3:
            traced = compiled["unique_graphs"]
    assert compiled["unique_graphs"] == traced > 0
    alone = torch.cat([model(**Collator(0)([item]), use_cache=False).logits[0] for item in items[:count]])
    torch.testing.assert_close(packed, alone, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("rule", ["turn", "released"])
def test_a_question_belongs_to_its_own_sample(make_managed, items, rule):
    """The same places as in each sample alone, moved to where the sample stands."""
    config = make_managed("last", question=rule).config
    batch, expected, offset = pack(items), [], 0
    visual = (config.image_token_id, config.video_token_id)
    for item in items:
        alone = Collator(0)([item])
        positions, lengths = visual_runs(item["input_ids"], visual)
        sequences = sequences_of_batch(alone["input_ids"], None, None, None)
        found = questions_of_batch(alone["input_ids"], sequences, torch.tensor(positions), lengths, rule, config)
        expected += [(question + offset).tolist() for question in found] if lengths else []
        offset += len(item["input_ids"])
    ids = batch["input_ids"]
    positions, lengths = visual_runs(ids[0].tolist(), visual)
    sequences = sequences_of_batch(ids, None, batch["position_ids"], None)
    assert [end - begin for begin, end in sequences] == [len(item["input_ids"]) for item in items]
    found = questions_of_batch(ids, sequences, torch.tensor(positions), lengths, rule, config)
    assert [question.tolist() for question in found] == expected
    assert sum(map(len, expected)) > 0


def visual_runs(ids: list[int], visual: tuple[int, int]) -> tuple[list[int], list[int]]:
    """Positions and lengths of the runs of one placeholder."""
    positions, lengths = [], []
    for place, token in enumerate(ids):
        if token in visual:
            positions.append(place)
            if place and ids[place - 1] == token:
                lengths[-1] += 1
            else:
                lengths.append(1)
    return positions, lengths


def test_packed_lengths():
    def found(*rows, mask=None):
        lengths = packed_lengths(torch.tensor(rows), mask, None)
        return lengths if lengths is None else lengths.tolist()

    assert found([0, 1, 2, 0, 0, 1]) == [3, 1, 2]
    assert found([0, 0, 0]) == [1, 1, 1]
    assert found([0, 1, 2]) is found([7, 8]) is found([0, 1], [0, 1]) is None
    assert found([0, 0, 1], mask=torch.ones(1, 3)) is None  # left-padded
    assert packed_lengths(None, None, None) is None
