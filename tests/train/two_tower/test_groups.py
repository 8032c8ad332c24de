"""The parts' rates and decay against the authors' six groups, and AdamW with its schedule against theirs."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import get_linear_schedule_with_warmup

from llava.convert.two_tower_names import reference_rules
from llava.train.loop.components import Component, freeze
from llava.train.loop.optimizer import create_adamw, parameter_groups
from llava.train.two_tower.components import split_components
from llava.two_tower.modeling import TwoTowerForTask
from llava.two_tower.tasks import TASKS
from tests.golden.two_tower_case import ModelCase, renamed
from tests.paths import TWO_TOWER_GOLDEN_DIR

EXTRAS = json.loads((TWO_TOWER_GOLDEN_DIR / "extras.json").read_text())
CASES = {"mt": ("B", "itc_mt_aaue_vector"), "bt": ("B", "itc_bt"), "meter": ("A", "meter")}


@pytest.mark.parametrize("name", CASES)
def test_the_authors_groups(pair_recipe, name):
    case = ModelCase(TWO_TOWER_GOLDEN_DIR, *CASES[name])
    expected, groups = {}, EXTRAS["param_groups"][name]
    assert len(groups) == 6
    recipe = pair_recipe("pretrain", **{"rates.decay": "reference", "optim.lr": 1e-5})
    for task in TASKS:
        config = case.config(task)
        with torch.device("meta"):
            model = TwoTowerForTask(config)
        rules = reference_rules(config)
        for group in groups:
            for theirs in group["names"]:
                tensor = case.state.get(theirs, torch.zeros(3, 3))
                expected |= {
                    ours: (group["lr"], group["weight_decay"]) for ours, _ in renamed(theirs, tensor, rules, config)
                }
        components = split_components(model, recipe)
        freeze(components)
        rates = {id(p): (g["lr"], g["weight_decay"]) for g in parameter_groups(components) for p in g["params"]}
        for ours, parameter in model.named_parameters():
            assert rates[id(parameter)] == pytest.approx(expected[ours]), ours
    assert {"heads.itc.temperature", "heads.mlm.decoder.bias"} <= expected.keys()


def test_by_default_norms_biases_and_temperatures_do_not_decay(pair_recipe):
    with torch.device("meta"):
        model = TwoTowerForTask(ModelCase(TWO_TOWER_GOLDEN_DIR, "B", "itc_mt_aaue_vector").config("retrieval"))
    components = split_components(model, pair_recipe("retrieval"))
    freeze(components)
    decayed = {id(p) for group in parameter_groups(components) if group["weight_decay"] for p in group["params"]}
    named = {name for name, parameter in model.named_parameters() if id(parameter) in decayed}
    assert "model.cross_modal.layers.0.text_bridge.scores" in named
    assert "model.type_embedding.weight" in named
    words = ("norm", "Norm", "bias", "temperature", "layrnorm")
    assert [name for name in named if any(word in name for word in words)] == []
    others = {name for name, _ in model.named_parameters()} - named
    assert [n for n in others if not any(w in n for w in words) and not n.endswith("class_embedding")] == []


def test_adamw_and_the_schedule():
    """Theirs decays after the step, ours before: a difference of the order lr^2 decay a step."""
    golden, tensors = EXTRAS["adamw"], load_file(TWO_TOWER_GOLDEN_DIR / "extras.safetensors")
    weight = torch.nn.Parameter(tensors["adamw/p0"].clone())
    component = Component("all", {"weight": weight}, True, golden["lr"], golden["weight_decay"], undecayed=frozenset())
    optimizer = create_adamw([component], "components", beta2=golden["betas"][1])
    schedule = get_linear_schedule_with_warmup(optimizer, golden["warmup"], golden["total"])
    for step, rate in enumerate(golden["lrs"]):
        assert optimizer.param_groups[0]["lr"] == pytest.approx(rate)
        weight.grad = tensors["adamw/grads"][step]
        optimizer.step()
        schedule.step()
        assert (weight - tensors["adamw/params"][step]).abs().max() < 1e-4
    assert (weight - tensors["adamw/p0"]).abs().max() > 0.02
