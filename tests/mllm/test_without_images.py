"""What a forward pass without images runs, by what the ranks of a job need; gradients are not changed by it."""

import pytest
import torch


@pytest.fixture
def tower_forwards(make_model):
    """A function: to a model, and the list of tokens per crop of every pass of its tower from then on."""

    def make(without_images: str):
        model, passes = make_model(), []
        model.model.without_images = without_images
        first_layer = model.model.vision_tower.encoder.layers[0]
        first_layer.register_forward_pre_hook(lambda _, arguments: passes.append(arguments[0].shape[1]))
        return model, passes

    return make


def loss_of(model) -> torch.Tensor:
    ids = torch.arange(12)[None]
    return model(input_ids=ids, labels=ids).loss


@pytest.mark.parametrize(
    ("without_images", "training", "tower_trained", "expected"),
    [
        ("nothing", True, True, []),
        ("nothing", False, True, []),
        ("trained", True, True, [1]),
        ("trained", True, False, []),
        ("trained", False, True, []),
        ("all", True, True, [1]),
        ("all", True, False, [1]),
        ("all", False, True, [1]),
    ],
)
def test_the_tower_runs_on_one_token_where_ranks_need_it(
    tower_forwards, without_images, training, tower_trained, expected
):
    model, passes = tower_forwards(without_images)
    model.model.vision_tower.requires_grad_(tower_trained)
    loss_of(model.train(training))
    assert passes == expected


@pytest.mark.parametrize("without_images", ["trained", "all"])
@pytest.mark.parametrize("tower_trained", [True, False])
def test_every_part_takes_part_with_a_gradient_of_zero(make_model, without_images, tower_trained):
    results = []
    for what in ("nothing", without_images):
        model = make_model().train()
        model.model.vision_tower.requires_grad_(tower_trained)
        model.model.vision_tower.post_layernorm.requires_grad_(False)
        model.model.without_images = what
        loss = loss_of(model)
        loss.backward()
        results.append((loss.item(), {name: p.grad for name, p in model.named_parameters() if p.requires_grad}))
    (loss, gradients), (same_loss, found) = results
    assert same_loss == loss
    for name, gradient in gradients.items():
        assert torch.equal(found[name], torch.zeros_like(found[name]) if gradient is None else gradient), name
    parts = ["multi_modal_projector", "image_newline", "fusion"] + ["vision_tower"] * tower_trained
    assert {name.split(".")[1] for name, gradient in gradients.items() if gradient is None} == set(parts)


def test_nothing_runs_for_replicas_when_nothing_of_the_vision_side_trains(tower_forwards):
    model, passes = tower_forwards("trained")
    model.requires_grad_(False)
    model.model.language_model.requires_grad_(True)
    projected = []
    model.model.multi_modal_projector.register_forward_hook(lambda *_: projected.append(1))
    loss_of(model.train())
    assert passes == projected == []


def test_decoding_steps_run_no_blank_crop(tower_forwards):
    model, passes = tower_forwards("all")
    model.generate(input_ids=torch.arange(12)[None], max_new_tokens=4, min_new_tokens=4, do_sample=False)
    assert passes == [1]
