"""What only cli_reconstruction has: layers, parameters, cost, and how its gates begin; see test_methods.py, too."""

import pytest
import torch

from llava.data.schema import Turn
from llava.errors import LlavaError
from llava.fusion.base import FusionCost, Product
from llava.fusion.cli_reconstruction import CliReconstruction, Gate
from llava.fusion.config import Sizes
from llava.fusion.configs.cli_reconstruction import CliReconstructionConfig
from llava.mllm.parts import PREFIXES
from tests.fusion.test_methods import CASES, assert_cost_is_what_torch_counts, make_awake, samples

__all__ = ["make_awake", "samples"]

REAL = Sizes(26, 1152, 24, 896, 729)


def test_layers_and_parameters_at_the_real_sizes():
    """1.7 M parameters of the corrections of 13 states, rank 64; with the gates half a percent of 893.7 M."""
    config = CliReconstructionConfig().resolved(26, 24)
    assert config.vision_layers == tuple(range(2, 27, 2))
    assert config.injection_layers == (0, 4, 8, 12, 16, 20)
    assert config.tower_layers(26) == (26, *range(2, 26, 2))
    with torch.device("meta"):
        fusion = CliReconstruction(config, REAL)
    corrections = sum(parameter.numel() for parameter in fusion.corrections.parameters())
    assert corrections == 13 * 64 * (1152 + 896) == 1_703_936
    gate = 13 * 896 + (2 * 896 * 224 + 224) + (224 + 1)
    assert sum(parameter.numel() for parameter in fusion.parameters()) == corrections + 6 * gate == 4_184_966
    own, hidden = ({"vision_tower", "projector", "fusion", "newline", *more} for more in ((), ("language_model",)))
    asked = 6 * 13 * 2 * 896
    assert CliReconstruction.cost(config, REAL) == FusionCost(
        maps=12,
        kept=13 * 729 * (64 + 896),
        products=(
            Product(13 * 729 * 2 * 1152 * 64, ({"fusion"}, {"vision_tower"})),
            Product(13 * 729 * 2 * 64 * 896, ({"fusion"}, {"fusion", "vision_tower"})),
            Product(asked, ({"fusion"}, own), "visual_token"),
            Product(asked, (own, own), "visual_token"),
            Product(6 * 13 * 2 * (2 * 896 * 224 + 224), ({"fusion"}, hidden), "shown"),
        ),
        sums=(Product(asked, (hidden, own), "visual_token"),),
    )


@pytest.mark.parametrize("trained", [(), ("projector",), tuple(PREFIXES)], ids=len)
def test_its_cost_with_two_images(trained, make_awake, samples):
    case = CASES["cli_reconstruction"]
    assert_cost_is_what_torch_counts(case, trained, *make_awake(case), samples[2])


def test_its_first_weights(make_model):
    fusion = make_model(fusion=CliReconstructionConfig()).model.fusion
    for correction in fusion.corrections:
        assert not correction.up.weight.any()
        assert 0.9 * 32**-0.5 < correction.down.weight.abs().max() <= 32**-0.5
    for gate in fusion.gates:
        assert gate.queries.std().item() == pytest.approx(24**-0.5, rel=0.3)
        assert 0.9 * 48**-0.5 < gate.linear_1.weight.abs().max() <= 48**-0.5
        assert not gate.linear_2.weight.any()
        assert not gate.linear_2.bias.any()


@pytest.mark.parametrize("tokens", [1, 7, 8, 33])
def test_a_gate_is_shut_to_the_last_bit_and_opens_with_the_first_step(tokens):
    """A sigmoid less itself is 0, however its numbers fall into vectors."""
    torch.manual_seed(0)
    gate = Gate(num_states=3, width=24)
    torch.nn.init.zeros_(gate.linear_2.weight)
    torch.nn.init.zeros_(gate.linear_2.bias)
    hidden, maps = torch.randn(2 * tokens, 24), [torch.randn(2 * tokens, 24) for _ in range(3)]
    delta = gate(hidden, maps, [tokens, tokens])
    assert torch.equal(delta, torch.zeros(2 * tokens, 24))
    delta.sum().backward()
    assert gate.linear_2.weight.grad.any()
    torch.nn.init.constant_(gate.linear_2.bias, 2.0)  # of the sigmoid: from -2 to 0
    expected = (0.5 - 1 / (1 + torch.tensor(2.0).exp())) * sum(maps)
    torch.testing.assert_close(gate(hidden, maps, [tokens, tokens]), expected)


def test_gates_are_an_images_own():
    torch.manual_seed(0)
    gate, hidden, maps = Gate(2, 24), torch.randn(9, 24, requires_grad=True), [torch.randn(9, 24) for _ in range(2)]
    (gradient,) = torch.autograd.grad(gate(hidden, maps, [4, 5])[:4].sum(), hidden)
    assert gradient.abs().sum(-1).nonzero()[:, 0].tolist() == [0, 1, 2, 3]


def test_no_images_give_every_weight_a_gradient_of_zero():
    gate = Gate(2, 24)
    gate(torch.zeros(0, 24), [torch.zeros(0, 24, requires_grad=True)] * 2, [0]).sum().backward()
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in gate.parameters())


def test_a_prompt_in_chunks_would_part_an_image(make_model, make_processor, make_image):
    model = make_model(fusion=CliReconstructionConfig())
    inputs = make_processor().encode_prompts([((Turn("human", "<image>\nA car?"),), [make_image()])])
    with pytest.raises(LlavaError, match=r"fusion \(cli_reconstruction of .*\) needs the whole prompt, .* found 7"):
        model.generate(**inputs, max_new_tokens=2, prefill_chunk_size=7)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"vision_layers": (27,)}, r"cli_reconstruction vision_layers \[27\] do not exist"),
        ({"vision_layers": ()}, "cli_reconstruction vision_layers must name at least one layer"),
        ({"injection_layers": (4, 0)}, r"cli_reconstruction injection_layers \[4, 0\] must ascend"),
    ],
)
def test_layers_that_cannot_be(fields, message):
    with pytest.raises(LlavaError, match=message):
        CliReconstructionConfig(**fields).resolved(26, 24)
