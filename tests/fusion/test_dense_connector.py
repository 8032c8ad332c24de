"""Of concat, sci and dci: layers, parameters and first weights; test_methods.py compares them with their slow twins."""

import pytest
import torch

from llava.errors import LlavaError
from llava.fusion.config import Sizes
from llava.fusion.configs.dense_connector import ConcatConfig, DciConfig, SciConfig
from llava.fusion.dense_connector import DenseConnector
from llava.mllm.cost import forward_cost
from llava.mllm.projector import MultiModalProjector

REAL = Sizes(26, 1152, 24, 896, 729)


def states_of(layers: int) -> dict[int, torch.Tensor]:
    return {layer: torch.full((1, 1, 2), float(layer)) for layer in range(layers + 1)}


def channels(config, layers: int) -> list[float]:
    """What stands beside each other where the state of layer l is l everywhere."""
    fusion = DenseConnector(config.resolved(layers, 24), Sizes(layers, 2, 24, 8, 1))
    states = states_of(layers)
    visual = fusion.visual_input({layer: states[layer] for layer in fusion.layers})
    assert torch.equal(visual[..., ::2], visual[..., 1::2])
    return visual[0, 0, ::2].tolist()


@pytest.mark.parametrize(
    ("config", "layers", "expected"),
    [
        (ConcatConfig(), 26, [26, 16]),
        (ConcatConfig(), 24, [24, 15]),
        (ConcatConfig(vision_layers=(3, 18, -4)), 26, [26, 3, 18, 23]),
        (SciConfig(), 26, [26, 8, 16]),
        (SciConfig(), 13, [13, 4, 8]),
        (DciConfig(), 26, [26, sum(range(13)) / 13, sum(range(13, 26)) / 13]),
        (DciConfig(embeddings="left_out"), 26, [26, sum(range(1, 13)) / 12, sum(range(13, 26)) / 13]),
        (DciConfig(), 24, [24, sum(range(12)) / 12, sum(range(12, 24)) / 12]),
        (DciConfig(), 5, [5, 0.5, 3]),
    ],
)
def test_the_states_follow_the_towers_size(config, layers, expected):
    """The released code has numbers for two towers."""
    assert channels(config, layers) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("config", "states", "parameters"),
    [
        (ConcatConfig(), 1, 2_868_992),
        (ConcatConfig(vision_layers=(8, 16, 24)), 3, 4_933_376),
        (SciConfig(), 2, 3_901_184),
        (DciConfig(), 2, 3_901_184),
    ],
)
def test_parameters_at_the_real_sizes(config, states, parameters):
    """1,836,800 of the baseline's projector, and 1152 x 896 more for each state or mean."""
    config = config.resolved(26, 24)
    with torch.device("meta"):
        projector = MultiModalProjector(config.visual_width(REAL), REAL.text_width)
        assert list(DenseConnector(config, REAL).parameters()) == []
    found = sum(parameter.numel() for parameter in projector.parameters())
    assert found == parameters == 1_836_800 + states * 1_032_192


@pytest.mark.parametrize("config", [SciConfig(), DciConfig()])
@pytest.mark.parametrize("initialisation", ["own", "zero"])
def test_first_weights(make_config, make_model, config, initialisation):
    """Drawn as torch's linear layer of three times the channels; with `zero` the baseline's columns alone."""
    kind = type(config)(initialisation=initialisation)
    weight = make_model(fusion=kind).model.multi_modal_projector.linear_1.weight
    baseline = make_model(fusion=None).model.multi_modal_projector.linear_1.weight
    assert weight.shape == (24, 96)
    if initialisation == "zero":
        assert weight[:, :32].std().item() == pytest.approx(baseline.std().item(), rel=0.1)
        assert not weight[:, 32:].any()
    else:
        assert weight.std().item() == pytest.approx(baseline.std().item() / 3**0.5, rel=0.1)


def test_loaded_weights_are_not_drawn_again(make_model, tmp_path):
    model = make_model(fusion=SciConfig(initialisation="zero"))
    weight = model.model.multi_modal_projector.linear_1.weight
    weight.data.normal_()
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert torch.equal(loaded.model.multi_modal_projector.linear_1.weight, weight)


def test_how_it_began_does_not_bind_the_next_stage():
    own, zero = (DciConfig(initialisation=name) for name in ("own", "zero"))
    assert own.weights_follow() == zero.weights_follow() == {"embeddings": "first_half"}
    assert SciConfig().resolved(26, 24).weights_follow() == {"vision_layers": (8, 16)}


def test_it_costs_what_the_wider_projector_costs(make_config):
    costs = [forward_cost(make_config(fusion=fusion)).crop for fusion in (None, ConcatConfig(), DciConfig())]
    assert costs[1] - costs[0] == 2 * 16 * 32 * 24
    assert costs[2] - costs[0] == 2 * 2 * 16 * 32 * 24


@pytest.mark.parametrize(
    ("config", "layers", "message"),
    [
        (ConcatConfig(vision_layers=()), 26, "concat vision_layers must name at least one state"),
        (
            SciConfig(vision_layers=(8, 27)),
            26,
            r"sci vision_layers \[27\] do not exist: the model has 27, from 0 to 26",
        ),
        (DciConfig(), 1, "dci, embeddings first_half: no state for a half of 1 layers"),
        (DciConfig(embeddings="left_out"), 3, "dci, embeddings left_out: no state for a half of 3 layers"),
    ],
)
def test_what_cannot_be_is_named(config, layers, message):
    with pytest.raises(LlavaError, match=message):
        config.resolved(layers, 24)


def test_unknown_choices_are_named():
    with pytest.raises(LlavaError, match="unknown dci embeddings 'both'; choose one of first_half, left_out"):
        DciConfig(embeddings="both")
    with pytest.raises(LlavaError, match="unknown sci initialisation 'none'; choose one of own, zero"):
        SciConfig(initialisation="none")
