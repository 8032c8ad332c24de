"""Of mmfuser: layers, parameters, first weights and where it looks; test_methods.py compares it with its slow twin."""

import pytest
import torch

from llava.errors import LlavaError
from llava.fusion.config import Sizes
from llava.fusion.configs.mmfuser import MmfuserConfig
from llava.fusion.mmfuser import DeformableAttention, Mmfuser

REAL = Sizes(26, 1152, 24, 896, 729)


def test_layers_and_parameters_at_the_real_sizes():
    """16 heads of 4 points in 4 states, each with two offsets and a weight; then in the answer alone."""
    config = MmfuserConfig().resolved(26, 24)
    assert config.vision_layers == (3, 9, 14, 20)
    assert MmfuserConfig().resolved(24, 24).vision_layers == (3, 8, 13, 18)
    assert config.tower_layers(26) == (26, 3, 9, 14, 20)
    with torch.device("meta"):
        fusion = Mmfuser(config, REAL)
    counts = [sum(one.numel() for one in part.parameters()) for part in (fusion.cross_attention, fusion.self_attention)]
    matrices = 2 * (1152 * 1152 + 1152)
    assert counts == [1153 * 3 * 16 * 4 * 4 + matrices, 1153 * 3 * 16 * 4 + matrices]
    assert sum(one.numel() for one in fusion.parameters()) == sum(counts) + 3 * 2 * 1152 + 2 * 1152 == 6_429_120


def test_it_begins_with_a_ring_of_directions_equal_weights_and_closed_gates(make_model):
    fusion = make_model(fusion=MmfuserConfig(vision_layers=(1, 2, 3), heads=8, points=2)).model.fusion
    ring = [(1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1)]
    for attention, levels in ((fusion.cross_attention, 3), (fusion.self_attention, 1)):
        assert not attention.offsets.weight.any()
        expected = torch.tensor([[[(x, y), (2 * x, 2 * y)]] * levels for x, y in ring], dtype=torch.float32)
        torch.testing.assert_close(attention.offsets.bias.view(8, levels, 2, 2), expected)
        assert not attention.weights.weight.any()
        assert not attention.weights.bias.any()
        bound = (6 / (32 + 32)) ** 0.5
        for linear in (attention.value, attention.output):
            assert 0.95 * bound < linear.weight.abs().max() <= bound
            assert not linear.bias.any()
    assert not fusion.gate_1.weight.any()
    assert not fusion.gate_2.weight.any()


def test_where_a_head_looks():
    """Four heads of a channel each look right, down, left and up, one token and two away; outside are zeros."""
    attention = DeformableAttention(4, 1, 4, 2)
    attention.offsets.initialise()
    attention.weights.initialise()
    for linear in (attention.value, attention.output):
        linear.weight.data, linear.bias.data = torch.eye(4), torch.zeros(4)
    with torch.no_grad():
        numbers = torch.arange(1.0, 17)  # of a map of 4 x 4, row by row
        found = attention(torch.zeros(1, 16, 4), numbers[None, :, None].expand(1, 16, 4))
    torch.testing.assert_close(found[0, 5], torch.tensor([(7 + 8) / 2, (10 + 14) / 2, (5 + 0) / 2, (2 + 0) / 2]))
    torch.testing.assert_close(found[0, 15], torch.tensor([0.0, 0.0, (15 + 14) / 2, (12 + 8) / 2]))


def test_places_are_exact_in_bfloat16():
    """The released code needs an operator in float32; here what is sampled is, whatever the weights are."""
    attention = DeformableAttention(2, 1, 1, 1)
    for linear in (attention.value, attention.output):
        linear.weight.data, linear.bias.data = torch.eye(2), torch.zeros(2)
    attention.offsets.initialise()
    attention.offsets.bias.data.zero_()
    attention.weights.initialise()
    maps = torch.randn(1, 27 * 27, 2).bfloat16()
    with torch.no_grad():
        found = attention.bfloat16()(torch.zeros_like(maps), maps)
    torch.testing.assert_close(found.float(), maps.float(), atol=1e-3, rtol=1e-2)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"vision_layers": ()}, r"mmfuser needs at least one state, head and point; found vision_layers \[\]"),
        ({"vision_layers": (3, 27)}, r"mmfuser vision_layers \[27\] do not exist: the model has 27, from 0 to 26"),
        ({"points": 0}, "heads 16 and points 0"),
    ],
)
def test_what_cannot_be_is_named(fields, message):
    with pytest.raises(LlavaError, match=message):
        MmfuserConfig(**fields).resolved(26, 24)


def test_heads_divide_the_width():
    with pytest.raises(LlavaError, match=r"fusion.heads 7 do not divide the tower's width 1152"):
        Mmfuser(MmfuserConfig(heads=7).resolved(26, 24), REAL)
