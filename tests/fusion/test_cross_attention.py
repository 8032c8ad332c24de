"""What only cross_attention has: layers, parameters, cost, and what a token may attend to; see test_methods.py, too."""

import pytest
import torch

from llava.data.schema import Turn
from llava.errors import LlavaError
from llava.fusion.base import FusionCost, Product
from llava.fusion.config import Sizes
from llava.fusion.configs.cross_attention import CrossAttentionConfig
from llava.fusion.cross_attention import CrossAttention, CrossAttentionBlock

REAL = Sizes(26, 1152, 24, 896, 729, text_heads=14, text_key_value_heads=2, text_mlp_width=4864)


def test_layers_and_parameters_at_the_real_sizes():
    """States 3, 7, 15, 23 and 30 of Llama-3.2-Vision's 32; 14.9 M parameters a block."""
    assert CrossAttentionConfig().resolved(32, 24).vision_layers == (3, 7, 15, 23, 30)
    config = CrossAttentionConfig().resolved(26, 24)
    assert config.vision_layers == (2, 6, 12, 19, 24)
    assert config.injection_layers == (0, 4, 8, 12, 16, 20)
    assert config.tower_layers(26) == (26, 2, 6, 12, 19, 24)
    with torch.device("meta"):
        fusion = CrossAttention(config, REAL)
    attention, mlp, norms, gates = 2 * 896 * 896 + 2 * 896 * 128, 3 * 896 * 4864, 2 * 896 + 2 * 64, 2
    counts = [sum(parameter.numel() for parameter in block.parameters()) for block in fusion.blocks]
    assert counts == [attention + mlp + norms + gates] * 6 == [14_911_362] * 6
    assert sum(parameter.numel() for parameter in fusion.features.parameters()) == 6 * 1152 * 896 + 896
    features = {"fusion", "vision_tower", "newline"}
    hidden = {*features, "projector", "language_model"}
    assert CrossAttention.cost(config, REAL) == FusionCost(
        products=(
            Product(729 * 2 * 6 * 1152 * 896, ({"fusion"}, {"vision_tower"})),
            Product(6 * 2 * (2 * 896 * 896 + mlp), ({"fusion"}, hidden), "visual_token"),
            Product(6 * 2 * 2 * 896 * 128, ({"fusion"}, features), "visual_token"),
            Product(6 * 4 * 896, (hidden, features), "visual_pair"),
        ),
        kept=729 * 896,
        kept_of_token=6 * (12 * 896 + 4 * 4864),
    )


def test_its_first_weights(make_model):
    fusion = make_model(fusion=CrossAttentionConfig()).model.fusion
    for name, parameter in fusion.named_parameters():
        if "norm" in name:
            assert (parameter == 1).all(), name
        elif name.endswith("_gate"):
            assert parameter == 0, name
        else:
            width = parameter.shape[-1] if name.endswith("weight") else fusion.features.linear.in_features
            assert 0.8 * width**-0.5 < parameter.abs().max() <= width**-0.5, name


@pytest.fixture
def block():
    torch.manual_seed(0)
    block = CrossAttentionBlock(width=24, heads=4, key_value_heads=2, mlp_width=48)
    for gate in (block.attention_gate, block.mlp_gate):
        torch.nn.init.ones_(gate)
    return block


def test_a_token_attends_to_all_of_its_own_image_and_to_no_other(block):
    hidden, features = torch.randn(9, 24), torch.randn(9, 24, requires_grad=True)
    for token, image in ((0, range(4)), (3, range(4)), (4, range(4, 9)), (8, range(4, 9))):
        (gradient,) = torch.autograd.grad(block(hidden, features, [4, 5])[token].square().sum(), features)
        assert gradient.abs().sum(-1).nonzero()[:, 0].tolist() == list(image)


def test_no_images_give_every_weight_a_gradient_of_zero(block):
    block(torch.zeros(0, 24), torch.zeros(0, 24, requires_grad=True), [0]).sum().backward()
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in block.parameters())


def test_a_prompt_in_chunks_would_part_an_image(make_model, make_processor, make_image):
    model = make_model(fusion=CrossAttentionConfig())
    inputs = make_processor().encode_prompts([((Turn("human", "<image>\nA car?"),), [make_image()])])
    with pytest.raises(LlavaError, match=r"fusion \(cross_attention to .*\) needs the whole prompt, .* found 7"):
        model.generate(**inputs, max_new_tokens=2, prefill_chunk_size=7)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"vision_layers": (1, 26)}, "cross_attention vision_layers name 26, the visual input, which is there"),
        ({"vision_layers": (1, 27)}, r"cross_attention vision_layers \[27\] do not exist"),
        ({"injection_layers": (24,)}, r"cross_attention injection_layers \[24\] do not exist"),
        ({"injection_layers": ()}, "cross_attention injection_layers must name at least one layer"),
    ],
)
def test_layers_that_cannot_be(fields, message):
    with pytest.raises(LlavaError, match=message):
        CrossAttentionConfig(**fields).resolved(26, 24)
