"""What only igva has: its groups, weights without a question and in the first stage, sizes, and how it begins."""

import pytest
import torch

from llava.anyres import TilingConfig
from llava.errors import LlavaError
from llava.fusion.base import Questions
from llava.fusion.config import Sizes
from llava.fusion.configs.igva import IgvaConfig
from llava.fusion.igva import Igva
from tests.fusion.twins.igva import SIZES, IgvaTwin

BIG = Sizes(26, 1152, 24, 896, 729)


@pytest.fixture
def make_fusion(make_model):
    """A function: fields to a model with an igva of two groups."""
    return lambda **fields: make_model(TilingConfig(), IgvaConfig(**SIZES, **fields))


@pytest.mark.parametrize(("aggregator", "asked"), [("question", [True, False]), ("uniform", [True, True])])
def test_groups_weigh_alike_without_a_question_and_in_the_first_stage(make_fusion, aggregator, asked):
    """The aggregator's weights then have a gradient, of zero, as all ranks must have one."""
    model = make_fusion(aggregator=aggregator)
    fusion, twin = model.model.fusion, IgvaTwin(model)
    states = {layer: torch.randn(2, 16, 32) for layer in (1, 2, 3, 4)}
    means = torch.randn(2, 24)
    found = fusion.guided_visual_input(states, Questions(means, torch.tensor(asked)))
    listed = [[torch.empty(0), *(states[layer][crop] for layer in (1, 2, 3, 4))] for crop in range(2)]
    alike = [torch.cat([one[4], (one[1] + (one[2] + one[3] + one[4]) / 3) / 2], 1) for one in listed]
    torch.testing.assert_close(found[1], alike[1], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found[0], twin.visual_input(listed[0], means[:1]), atol=1e-5, rtol=1e-4)
    assert torch.allclose(found[0], alike[0], atol=1e-5) == (aggregator == "uniform")
    found[1].sum().backward()
    for name, parameter in fusion.named_parameters():
        assert torch.equal(parameter.grad, torch.zeros_like(parameter)), name


def test_a_stage_hands_its_weights_to_the_next():
    """The aggregator is there in both; what they depend on are the groups and the aggregator's sizes."""
    first, second = (IgvaConfig(aggregator=one).resolved(26, 24) for one in ("uniform", "question"))
    assert first.weights_follow() == second.weights_follow()
    assert first.weights_follow() != IgvaConfig(groups=(13, 26)).resolved(26, 24).weights_follow()


def test_groups_and_parameters_at_the_real_sizes():
    """Theirs are 1 .. 6, 7 .. 12, 13 .. 18 and 19 .. 24 of 24; with the wider projector it adds 28 M."""
    assert IgvaConfig().resolved(24, 24).groups == (6, 12, 18, 24)
    config = IgvaConfig().resolved(26, 24)
    assert [list(group) for group in config.grouped()] == [
        [1, 2, 3, 4, 5, 6],
        [7, 8, 9, 10, 11, 12, 13],
        [14, 15, 16, 17, 18, 19, 20],
        [21, 22, 23, 24, 25, 26],
    ]
    assert config.tower_layers(26) == (26, *range(1, 26))
    assert config.visual_width(BIG) == 2 * 1152
    with torch.device("meta"):
        fusion = Igva(config, BIG)
    block = 6 * (1024**2 + 1024) + 2 * 2 * 1024
    expected = (896 + 1) * 1024 + (1152 + 1) * 1024 + 4 * block + (1024 + 1) * 4
    assert sum(parameter.numel() for parameter in fusion.parameters()) == expected == 27_310_084
    assert 28.3e6 < expected + 1152 * 896 < 28.4e6


def test_its_first_weights(make_fusion):
    """Attention as torch's nn.MultiheadAttention, the others as nn.Linear."""
    aggregator = make_fusion().model.fusion.aggregator
    theirs = torch.nn.MultiheadAttention(8, 2)
    for block in aggregator.blocks:
        for linear in (block.q_proj, block.k_proj, block.v_proj):
            assert 0.8 * 0.4330 < linear.weight.abs().max() <= 0.4331  # (6 / (8 + 24)) ** 0.5
        assert 0.8 * 8**-0.5 < block.o_proj.weight.abs().max() <= 8**-0.5
        assert not any(one.bias.any() for one in (block.q_proj, block.k_proj, block.v_proj, block.o_proj))
        for linear in (block.linear_1, block.linear_2):
            assert 0.8 * 8**-0.5 < linear.weight.abs().max() <= 8**-0.5
            assert linear.bias.abs().max() > 0
    assert theirs.in_proj_weight.abs().max() <= 0.4331
    assert not theirs.in_proj_bias.any()
    assert not theirs.out_proj.bias.any()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"groups": ()}, "fusion.groups are none"),
        ({"groups": (5,)}, r"igva groups \[5\] do not exist: the model has 5, from 0 to 4"),
        ({"groups": (3, 2)}, r"igva groups \[3, 2\] must ascend"),
        ({"groups": (0, 2)}, "fusion.groups begin with 0"),
        ({"aggregator": "none"}, "unknown igva aggregator 'none'; choose one of question, uniform"),
    ],
)
def test_what_cannot_be_is_refused(make_config, fields, message):
    with pytest.raises(LlavaError, match=message):
        make_config(fusion={"method": "igva", **fields})
