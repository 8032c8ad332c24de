"""What only deepstack_qwen3 has: its layers and parameters; test_methods.py compares it with its slow twin."""

import json

import pytest
import torch

from llava.errors import LlavaError
from llava.fusion.base import FusionCost, Product
from llava.fusion.config import Sizes
from llava.fusion.configs.deepstack_qwen3 import DeepstackQwen3Config
from llava.fusion.deepstack_qwen3 import DeepstackQwen3
from llava.fusion.none import NoFusion
from llava.mllm.cost import training_cost


@pytest.mark.parametrize("initialisation", ["own", "zero"])
def test_its_first_weights_are_those_of_linear_layers(make_model, initialisation):
    for merger in make_model(fusion=DeepstackQwen3Config(initialisation=initialisation)).model.fusion.mergers:
        assert (merger.norm.weight == 1).all()
        drawn = [merger.linear_1] if initialisation == "zero" else [merger.linear_1, merger.linear_2]
        for linear in drawn:
            bound = linear.in_features**-0.5
            assert 0.9 * bound < linear.weight.abs().max() <= bound
            assert linear.bias.abs().max() > 0
        assert (merger.linear_2.weight.any(), merger.linear_2.bias.any()) == (len(drawn) == 2,) * 2


def test_a_model_saved_before_it_had_an_initialisation_loads(make_model, tmp_path):
    """Its own start, which a stage at zero may go on from: weights do not depend on it."""
    model = make_model(fusion=DeepstackQwen3Config())
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["fusion"].pop("initialisation") == "own"
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded = type(model).from_pretrained(tmp_path)
    assert loaded.config.fusion == model.config.fusion
    assert all(torch.equal(weight, loaded.state_dict()[name]) for name, weight in model.state_dict().items())
    zero = DeepstackQwen3Config(initialisation="zero").resolved(4, 6)
    assert zero.weights_follow() == loaded.config.fusion.weights_follow()


def test_layers_and_parameters_at_the_real_sizes():
    """Behind blocks 8, 16 and 24 of 27 are states 9, 17 and 25; 7.1 M parameters at the widths 1152 and 896."""
    assert DeepstackQwen3Config().resolved(27, 24).vision_layers == (9, 17, 25)
    config = DeepstackQwen3Config().resolved(26, 24)
    assert (config.vision_layers, config.injection_layers) == ((9, 16, 24), (1, 2, 3))
    assert config.tower_layers(26) == (26, 9, 16, 24)
    with torch.device("meta"):
        fusion = DeepstackQwen3(config, Sizes(26, 1152, 24, 896, 729))
    expected = 3 * (2 * 1152 + 1152 * 1152 + 1152 + 1152 * 896 + 896)
    assert sum(parameter.numel() for parameter in fusion.parameters()) == expected == 7_090_944


@pytest.mark.parametrize(
    ("fields", "sizes", "message"),
    [
        ({}, (2, 6), r"deepstack_qwen3 vision_layers \[1, 1, 2\] must name none twice"),
        ({}, (26, 3), r"deepstack_qwen3 injection_layers \[3\] do not exist: the model has 3, from 0 to 2"),
        ({"vision_layers": (1, 27, 28)}, (26, 24), r"deepstack_qwen3 vision_layers \[27, 28\] do not exist"),
        ({"vision_layers": (), "injection_layers": ()}, (26, 24), "vision_layers must name at least one layer"),
    ],
)
def test_layers_that_do_not_exist_are_named(fields, sizes, message):
    with pytest.raises(LlavaError, match=message):
        DeepstackQwen3Config(**fields).resolved(*sizes)


def test_as_many_states_as_layers(make_config):
    with pytest.raises(LlavaError, match=r"fusion.vision_layers are 2, fusion.injection_layers 3: one for each"):
        make_config(fusion={"method": "deepstack_qwen3", "vision_layers": [1, 2]})


def test_products_with_the_towers_states_cost_as_they_train(make_config, monkeypatch):
    """They have no gradient of their input while the tower is frozen."""
    config = make_config(fusion=None)
    plain = {trained: training_cost(config, trained).crop for trained in ((), ("fusion",), ("vision_tower",))}
    product = Product(1000, (frozenset({"fusion"}), frozenset({"vision_tower"})))
    monkeypatch.setattr(NoFusion, "cost", lambda config, sizes: FusionCost(products=(product,)))
    added = [training_cost(config, trained).crop - crop for trained, crop in plain.items()]
    assert added == [1000, 2000, 2000]
