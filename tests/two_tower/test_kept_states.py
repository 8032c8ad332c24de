"""States of frozen towers that are kept: what they change (nothing), and when towers run."""

import pytest
import torch

from llava.two_tower.tasks import TASKS
from tests.two_tower.test_modeling import batch_of, run
from tests.two_tower.tiny import tiny_model

TOWERS = ("text_tower", "image_tower")


def frozen_model(task, **options):
    model = tiny_model(task, **options)
    for name in TOWERS:
        getattr(model.model, name).requires_grad_(False)
    return model


def loss_and_gradients(model):
    model.zero_grad()
    output = run(model)
    output.loss.backward()
    return output.loss.detach(), {name: one.grad for name, one in model.named_parameters() if one.requires_grad}


def sizes_of_calls(model):
    """A list per tower of how many inputs it was given, call by call."""
    calls = {name: [] for name in TOWERS}
    for name, sizes in calls.items():
        getattr(model.model, name).register_forward_hook(
            lambda module, args, kwargs, outputs, sizes=sizes: sizes.append(len(outputs.last_hidden_state)),
            with_kwargs=True,
        )
    return calls


@pytest.mark.parametrize(
    ("task", "options"),
    [
        *((task, {}) for task in TASKS),
        ("vqav2", {"bridge": "meter", "gated_fusion": True}),
        ("vqav2", {"query": "own"}),
    ],
)
def test_they_are_those_of_the_towers(task, options):
    model = frozen_model(task, **options)
    loss, gradients = loss_and_gradients(model)
    model.model.keep_states(("text", "image"))
    calls = sizes_of_calls(model)
    for _ in range(2):  # computed, and kept
        kept_loss, kept_gradients = loss_and_gradients(model)
        torch.testing.assert_close(kept_loss, loss, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(kept_gradients, gradients, atol=1e-5, rtol=1e-4)
        assert {*calls["text_tower"], *calls["image_tower"]} <= {1}
    inputs = 3  # of a batch; the texts and images of all tasks' fields are among its own
    assert {name: len(sizes) for name, sizes in calls.items()} == dict.fromkeys(TOWERS, inputs)


def test_bits_depend_on_no_other_input():
    model = frozen_model("vqav2").model
    model.keep_states(("text", "image"))
    batch = batch_of(model.config, 6)
    ids, mask, pixels = (batch[name] for name in ("input_ids", "attention_mask", "pixel_values"))
    texts, images = model.encode_text(ids, mask), model.encode_image(pixels)
    model.keep_states(("text", "image"))
    assert torch.equal(model.encode_text(ids[:1, :4], mask[:1, :4]).states, texts.states[:, :1, :4])
    assert torch.equal(model.encode_image(pixels[2:4]).states, images.states[:, 2:4])


def test_what_an_evaluation_kept_serves_training():
    model = frozen_model("vqav2")
    model.model.keep_states(("image",))
    batch, calls = batch_of(model.config), sizes_of_calls(model)
    with torch.inference_mode():
        model(**batch)
    run(model).loss.backward()
    assert {name: len(sizes) for name, sizes in calls.items()} == {"text_tower": 2, "image_tower": 3}
