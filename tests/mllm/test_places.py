"""What a collator says of its batch is what the model finds by itself, and without a mask it computes the same."""

import pytest
import torch

from llava.data.collator import Collator
from llava.data.schema import Sample, Turn
from llava.errors import LlavaError
from llava.mllm.questions import question_finder

SAMPLES = [
    ("What is 01 and 2?", 0, 0),
    ("<image>\nWhat is in the picture?", 1, 0),
    ("<video> <image> <image>\nWhich?", 2, 1),
    ("<image>", 1, 0),
]
SAID = ("sequence_lengths", "visual_positions", "supervised_positions", "question_positions", "question_lengths")


@pytest.fixture(scope="module")
def items(make_processor, make_image) -> list[dict]:
    processor, encoded = make_processor(), []
    for text, images, videos in SAMPLES:
        turns = (Turn("human", text), Turn("gpt", "A red car." * (1 + images)))
        shown = [make_image(60 + 50 * number, 97, number) for number in range(images)]
        clips = [[make_image(64, 48, frame) for frame in range(2)] for _ in range(videos)]
        sample = Sample("", turns, ("",) * images, "", ("",) * videos)
        settings = {"template": "qwen_1_5", "label_rule": "answers", "max_length": 1024}
        encoded.append(processor.encode_sample(sample, shown, clips, **settings))
    return encoded


def unsaid(batch: dict, packing: bool) -> dict:
    """The same batch as another collator would make it: sizes as tensors, a mask for the padding, and no more."""
    sized = {key: torch.tensor(value) for key, value in batch.items() if isinstance(value, list)}
    found = {key: value for key, value in (batch | sized).items() if key not in SAID}
    if not packing:
        places = torch.arange(batch["input_ids"].shape[1])
        found["attention_mask"] = (places < sized["sequence_lengths"][:, None]).long()
    return found


@pytest.mark.parametrize(("query", "rule"), [(None, "turn"), ("cross", "turn"), ("last", "released")])
@pytest.mark.parametrize("packing", [False, True])
def test_what_is_said_is_what_is_found(make_managed, items, packing, query, rule):
    """In float32 on a CPU the loss is the same to the last bit, padded rows without a mask, too."""
    model = make_managed(query, question=rule, jitter="none").train()
    batch = Collator(0, packing, question_finder(model.config))(items)
    assert ("question_positions" in batch) == (query is not None)
    results = []
    for inputs in (batch, unsaid(batch, packing)):
        model.zero_grad()
        loss = model(**inputs, skip_logits=True).loss
        loss.backward()
        results.append((loss, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}))
    (loss, gradients), (expected, expected_gradients) = results
    assert torch.equal(loss, expected)
    assert set(gradients) == set(expected_gradients)
    for name, gradient in expected_gradients.items():
        if packing:
            assert torch.equal(gradients[name], gradient), name
        else:  # the backward pass of attention adds up in another order without a mask
            torch.testing.assert_close(gradients[name], gradient, rtol=1e-4, atol=1e-6)


def test_a_batch_that_says_what_cannot_be(make_managed, items):
    model, batch = make_managed(None), Collator(0)(items)
    tokens = len(batch["visual_positions"])
    with pytest.raises(LlavaError, match=f"found {tokens - 1} visual_positions but {tokens} features"):
        model(**batch | {"visual_positions": batch["visual_positions"][1:]})
    rows, columns = batch["input_ids"].shape
    with pytest.raises(LlavaError, match=rf"sequence_lengths \[3\] do not fit {rows} rows of {columns} tokens"):
        model(**batch | {"sequence_lengths": [3]})
