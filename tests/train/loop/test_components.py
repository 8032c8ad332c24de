"""What trains: every parameter in one component, every combination of frozen and trained, groups as declared."""

from dataclasses import fields
from itertools import product

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from llava.data.collator import Collator
from llava.data.mixture import load_mixture
from llava.mllm.parts import PREFIXES
from llava.train.loop.components import component_rows, component_table, freeze
from llava.train.loop.optimizer import check_groups, create_adamw
from llava.train.mllm.components import split_components
from llava.train.mllm.data import supervised_dataset
from llava.train.recipe.load import load_recipe
from llava.train.recipe.schema import ComponentsRecipe

NAMES = tuple(PREFIXES)
COMBINATIONS = [trained for trained in product((False, True), repeat=len(NAMES)) if any(trained)]


def components_of(model, recipe):
    components = split_components(model, recipe)
    freeze(components)
    return components


def keys_of(trained, lr=True) -> dict:
    """Dotted keys that train the named components, each at its own rate."""
    rates = {name: (index + 1) / 1000 for index, name in enumerate(NAMES)}
    keys = {f"components.{name}.trained": name in trained for name in NAMES}
    return keys | ({f"components.{name}.lr": rate for name, rate in rates.items()} if lr else {})


def test_components_are_those_of_the_recipe():
    assert {field.name for field in fields(ComponentsRecipe)} == set(PREFIXES)


@pytest.mark.parametrize("managers", ["paper", None])
def test_every_parameter_is_in_exactly_one_component(make_model, tiny_recipe, managers):
    model = make_model(fusion=managers)
    components = split_components(model, tiny_recipe())
    owned = [name for component in components for name in component.parameters]
    assert sorted(owned) == sorted(name for name, _ in model.named_parameters())
    assert [component.name for component in components] == [name for name in NAMES if managers or name != "fusion"]
    head_and_embeddings = {"model.language_model.embed_tokens.weight"}
    assert head_and_embeddings <= set(components[-1].parameters)


def test_untied_head_belongs_to_the_language_model(make_model, tiny_recipe):
    model = make_model()
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    assert "lm_head.weight" in split_components(model, tiny_recipe())[-1].parameters


def test_a_parameter_of_no_component_is_an_error(make_model, tiny_recipe):
    model = make_model()
    model.model.adapter = nn.Linear(2, 2)
    with pytest.raises(RuntimeError, match=r"model.adapter.weight belongs to 0 components"):
        split_components(model, tiny_recipe())


@pytest.fixture(scope="module")
def batch(tiny_keys, data_folder, make_processor, tmp_path_factory):
    """Text alone, several images, one tiled image: every part of the model takes part."""
    keys = tiny_keys("2", **{"run.output_dir": str(tmp_path_factory.mktemp("out"))})
    recipe = load_recipe("scripts/train/recipes/mllm/stage2.yaml", "grid_manager", keys=keys)
    dataset = supervised_dataset(recipe, load_mixture(recipe.data.mixture, 0).samples, make_processor())
    return Collator(dataset.processor.tokenizer.pad_token_id)([dataset[index] for index in (4, 5, 6)])


def test_the_combinations_are_complete():
    assert len(set(COMBINATIONS)) == 2**5 - 1
    assert all(any(trained) for trained in COMBINATIONS)


@pytest.mark.parametrize("trained", COMBINATIONS, ids=lambda flags: "".join("ft"[flag] for flag in flags))
def test_a_step_moves_what_is_trained_at_its_rates_and_nothing_else(make_model, tiny_recipe, batch, trained):
    names = [name for name, flag in zip(NAMES, trained) if flag]
    model = make_model().train()
    decays = {f"components.{name}.weight_decay": (index + 1) / 10 for index, name in enumerate(NAMES)}
    components = components_of(model, tiny_recipe(**keys_of(names), **decays))
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = create_adamw(components, "components")
    LambdaLR(optimizer, lambda step: 1.0)  # notes the peak rates, as every schedule does
    model(**batch).loss.backward()
    optimizer.step()

    for name, parameter in model.named_parameters():
        owner = next(owner for owner, prefixes in PREFIXES.items() if name.startswith(prefixes))
        used = "post_layernorm" not in name  # nothing passes through it
        assert torch.equal(parameter, before[name]) != (owner in names and used), name
        assert (parameter.grad is not None) == (owner in names and used), name
    real = {}
    for group in optimizer.param_groups:
        decay = (NAMES.index(group["component"]) + 1) / 10
        assert group["lr"] == (NAMES.index(group["component"]) + 1) / 1000
        assert {(p.dim() > 1, group["weight_decay"]) for p in group["params"]} <= {(True, decay), (False, 0.0)}
        numbers = sum(parameter.numel() for parameter in group["params"])
        real[group["component"]] = real.get(group["component"], 0) + numbers
    table = {row["component"]: row["trainable"] for row in component_rows(components) if row["trainable"]}
    assert table == real
    assert list(table) == names
    assert sum(row["parameters"] for row in check_groups(components, "components", optimizer)) == sum(real.values())


def test_post_layernorm_stays_frozen_in_a_trained_tower(make_model, tiny_recipe):
    tower = components_of(make_model(), tiny_recipe(**keys_of(NAMES)))[0]
    frozen = [name for name, parameter in tower.parameters.items() if not parameter.requires_grad]
    assert frozen == ["model.vision_tower.post_layernorm.weight", "model.vision_tower.post_layernorm.bias"]


def test_a_parameter_without_gradient_keeps_its_momentum(make_model, tiny_recipe):
    """As on the ranks of a run, where a step of text alone gives the tower zeros: AdamW alone would skip it."""
    components = components_of(make_model(), tiny_recipe("2", **keys_of(NAMES)))
    optimizer = create_adamw(components, "components")
    weight = components[1].parameters["model.multi_modal_projector.linear_1.weight"]
    for parameter in components[1].parameters.values():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    before = weight.detach().clone()
    optimizer.step()
    assert not torch.equal(weight, before)


def test_each_component_has_its_rates(make_model, tiny_recipe):
    changes = {"components.projector.weight_decay": 0.1, "components.projector.lr": 0.5, "optim.lr": 0.25}
    components = components_of(make_model(), tiny_recipe("2", **changes))
    optimizer = create_adamw(components, "components")
    by_name = {}
    for group in optimizer.param_groups:
        by_name.setdefault(group["component"], []).append(group)
    assert list(by_name) == list(NAMES)
    assert {name: groups[0]["lr"] for name, groups in by_name.items()} == {
        "vision_tower": 2e-6,
        "projector": 0.5,
        "fusion": 5e-5,
        "newline": 0.25,
        "language_model": 0.25,
    }
    # Matrices decay, vectors never; without decay a component is one group.
    matrices, vectors = by_name["projector"]
    assert (matrices["weight_decay"], vectors["weight_decay"]) == (0.1, 0.0)
    assert {parameter.dim() for parameter in matrices["params"]} == {2}
    assert {parameter.dim() for parameter in vectors["params"]} == {1}
    assert len(by_name["language_model"]) == 1
    in_groups = sum(parameter.numel() for group in optimizer.param_groups for parameter in group["params"])
    assert in_groups == sum(component.num_trainable for component in components)


def test_single_trains_everything_at_the_base_rate(make_model, tiny_recipe):
    components = components_of(make_model(), tiny_recipe("2", lr_groups="single"))
    groups = create_adamw(components, "single").param_groups
    assert [(group["lr"], group["component"]) for group in groups] == [(1e-5, "all")]
    assert sum(p.numel() for p in groups[0]["params"]) == sum(component.num_trainable for component in components)
    assert {row["lr"] for row in component_rows(components)} == {1e-5}


def test_table(make_model, tiny_recipe):
    components = components_of(make_model(), tiny_recipe("1"))
    lines = [line.split() for line in component_table(components).splitlines()]
    assert lines[0] == ["component", "parameters", "trainable", "lr", "decay"]
    assert [line[0] for line in lines[1:]] == [*NAMES, "total"]
    assert lines[1][2:] == ["0", "-", "-"]
    assert lines[2][2:] == [lines[2][1], "0.001", "0"]
    total = sum(parameter.numel() for parameter in make_model().parameters())
    assert lines[-1][1] == f"{total:,}"
