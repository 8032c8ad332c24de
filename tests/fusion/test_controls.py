"""Controls of a bench of methods, against their equations written slowly; docs/fusion.md says what each is for."""

import pytest
import torch

from llava.data.schema import Turn
from llava.errors import LlavaError
from llava.fusion.config import Sizes
from llava.fusion.configs.layer_select import LayerSelectConfig
from llava.fusion.configs.manager import ManagerConfig
from llava.fusion.configs.none import NoneConfig
from llava.fusion.visual_managers import VisualManagers
from llava.mllm.parts import FUSION
from llava.train.recipe.load import load_recipe
from tests.fusion.twins.layer_select import LayerSelectTwin
from tests.fusion.twins.twin import Twin, slow_logits

# Of states 1 to 4 of a tower of 4 layers, by the layers 0, 2 and 4 of 6 that the managers stand before.
SUMMED = {
    "last": {0: (1, 2, 3, 4), 2: (1, 2, 3, 4), 4: (1, 2, 3, 4)},
    "in_order": {0: (1,), 2: (2,), 4: (3, 4)},
    "permuted": {0: (4,), 2: (3,), 4: (1, 2)},
}
STAGE_2 = "scripts/train/recipes/mllm/stage2.yaml"


def control(maps: str) -> ManagerConfig:
    return ManagerConfig(vision_layers=(1, 2, 3, 4), injection_layers=(0, 2, 4), jitter="none", maps=maps)


class ControlTwin(Twin):
    """h <- h + sum_i W_i * (P(V_i) + e_i) over this manager's states i; with `last` V_4 in the place of every V_i."""

    def features(self, states):
        """P(V_i) + e_i of each."""
        read = [4] * 4 if self.config.maps == "last" else [1, 2, 3, 4]
        return [self.project(states[i]) + e_i for i, e_i in zip(read, self.fusion.layer_embedding, strict=True)]

    def newlines(self):
        """The plain newline in every map, without embedding."""
        return [self.newline] * 4

    def before(self, layer, hidden, shown):
        """A sum over the manager's own maps."""
        states, hidden = SUMMED[self.config.maps].get(layer, ()), hidden.clone()
        weights = self.fusion.managers[layer // 2].scores if states else ()
        for one in shown:
            for place, maps in zip(one.places, one.packed, strict=True):
                for weight, state in zip(weights, states, strict=True):
                    hidden[place] += weight * maps[state - 1]
        return hidden


@pytest.mark.parametrize(
    ("config", "twin"),
    [
        *((control(maps), ControlTwin) for maps in SUMMED),
        (LayerSelectConfig(mapping="deep_to_early"), LayerSelectTwin),
    ],
    ids=[*SUMMED, "deep_to_early"],
)
def test_forward_and_backward_equal_the_slow_model(make_model, make_processor, make_image, config, twin):
    model = make_model(fusion=config)
    inputs = make_processor().encode_prompts([((Turn("human", "<image>\nA car?"),), [make_image(100, 60)])])
    slow = slow_logits(twin(model), inputs["input_ids"][0].tolist(), [(inputs["pixel_values"], (100, 60))])
    fast, gradients = model(**inputs).logits[0], []
    torch.testing.assert_close(fast, slow, atol=1e-5, rtol=1e-4)
    for logits in (slow, fast):
        model.zero_grad()
        logits.square().mean().backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    expected, found = gradients
    assert found.keys() == expected.keys()
    assert all(expected[name].abs().max() > 0 for name in expected if name.startswith(FUSION))
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-6, rtol=1e-3, msg=lambda m, n=name: f"{n} {m}")


@pytest.mark.parametrize("maps", SUMMED)
def test_controls_of_managers_begin_as_the_baseline(make_model, make_processor, make_image, maps):
    model, baseline = make_model(fusion=control(maps), zero_managers=True), make_model(fusion=NoneConfig())
    baseline.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith(FUSION)})
    inputs = make_processor().encode_prompts([((Turn("human", "<image>\nA car?"),), [make_image(100, 60)])])
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, baseline(**inputs).logits)


def test_a_manager_before_layer_0_alone_is_another_input(make_model, make_processor, make_image):
    """Depth without injection: its sum is in the language model's input, and nothing is added further up."""
    model, baseline = make_model(fusion=ManagerConfig(injection_layers=[0])), make_model(fusion=NoneConfig())
    baseline.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith(FUSION)})
    inputs = make_processor().encode_prompts([((Turn("human", "<image>\nA car?"),), [make_image(100, 60)])])
    with torch.no_grad():
        features = model.get_image_features(inputs["pixel_values"], inputs["image_sizes"])
        ((sums,),) = features.deepstack_features
        embedded = model.get_input_embeddings()(inputs["input_ids"])
        embedded[inputs["input_ids"] == model.config.image_token_id] = features.pooler_output[0] + sums
        expected = baseline(inputs_embeds=embedded, attention_mask=inputs["attention_mask"]).logits
        assert sums.abs().max() > 0.1
        torch.testing.assert_close(model(**inputs).logits, expected)


def test_another_order_of_all_maps_would_be_the_same_method():
    """Which is why the control `permuted` gives each map to one manager: a sum of all maps has no order."""
    torch.manual_seed(0)
    sizes = Sizes(4, 6, 6, 5, 2)
    managers, renamed = (VisualManagers(control("all").resolved(4, 6), sizes) for _ in range(2))
    maps, newline, order = list(torch.randn(4, 3, 2, 5)), torch.randn(5), [2, 0, 3, 1]
    with torch.no_grad():
        renamed.layer_embedding.copy_(managers.layer_embedding[order])
        for one, other in zip(managers.managers, renamed.managers):
            other.scores.copy_(torch.nn.init.normal_(one.scores)[order])
        expected, _ = managers(maps, newline, torch.zeros(3, dtype=torch.int64), 1)
        found, _ = renamed([maps[number] for number in order], newline, torch.zeros(3, dtype=torch.int64), 1)
    for (sums, ends), (other_sums, other_ends) in zip(expected, found, strict=True):
        torch.testing.assert_close(sums, other_sums)
        torch.testing.assert_close(ends, other_ends)


@pytest.mark.parametrize(
    ("arm", "expected"),
    [
        ("manager_last", {0: range(14, 27), 20: range(14, 27)}),
        ("manager_first_layer", {0: range(14, 27)}),
        ("manager_in_order", {0: (14, 15), 4: (16, 17), 8: (18, 19), 12: (20, 21), 16: (22, 23), 20: (24, 25, 26)}),
        ("manager_permuted", {0: (17, 26), 4: (19, 21), 8: (16, 22), 12: (18, 25), 16: (15, 23), 20: (14, 20, 24)}),
    ],
)
def test_arms_at_the_papers_size(arm, expected):
    config = load_recipe(STAGE_2, f"grid_{arm}").fusion.resolved(26, 24)
    assert config.injection_layers in (tuple(range(0, 24, 4)), tuple(expected))
    for layer, states in expected.items():
        assert tuple(config.vision_layers[row] for row in config.rows(layer)) == tuple(states)
    read = (26,) if arm == "manager_last" else (26, *range(14, 26))
    assert config.tower_layers(26) == read
    cost = VisualManagers.cost(config, Sizes(26, 1152, 24, 896, 729))
    assert cost.maps == len(read) - 1
    sums = 78 if arm == "manager_last" else 13
    assert [one.operations for one in cost.sums] == [2 * sums * 896 * 729]
    with torch.device("meta"):
        managers = VisualManagers(config, Sizes(26, 1152, 24, 896, 729))
    assert sum(parameter.numel() for parameter in managers.parameters()) == (13 + sums) * 896


def test_more_managers_than_maps_share_them():
    config = ManagerConfig((4, 5, 6), tuple(range(6)), maps="in_order")
    assert [config.rows(layer) for layer in range(6)] == [(0,), (0,), (1,), (1,), (2,), (2,)]


def test_the_deepest_state_before_the_earliest_layer():
    config = load_recipe(STAGE_2, "layer_select_deep_to_early").fusion.resolved(26, 24)
    assert dict(zip(config.vision_layers, config.places, strict=True)) == {3: 22, 20: 17, 25: 1}
    plain = LayerSelectConfig().resolved(26, 24)
    assert dict(zip(plain.vision_layers, plain.places, strict=True)) == {3: 1, 20: 17, 25: 22}


def test_config_json_of_managers_that_are_no_control_is_as_it_was():
    assert "maps" not in ManagerConfig().resolved(26, 24).to_dict()
    assert control("last").to_dict()["maps"] == "last"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"maps": "last", "query": "self"}, "fusion.maps last is for static managers: fusion.query is self"),
        ({"maps": "permuted", "first_omits_last_map": True}, "fusion.maps permuted leaves no map out: fusion.first_om"),
    ],
)
def test_what_cannot_be_combined(fields, message):
    with pytest.raises(LlavaError, match=message):
        ManagerConfig(**fields).resolved(26, 24)
