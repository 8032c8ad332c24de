"""What only tgif has: the answer is no part of the question, an image without one, sizes, and how it begins."""

import pytest
import torch

from llava.anyres import TilingConfig
from llava.data.collator import Collator
from llava.data.schema import Sample, Turn
from llava.fusion.base import Questions
from llava.fusion.config import Sizes
from llava.fusion.configs.tgif import TgifConfig
from llava.fusion.tgif import Tgif
from llava.mllm.questions import question_finder


@pytest.fixture
def model(make_model):
    return make_model(TilingConfig(), TgifConfig())


@pytest.mark.parametrize("packing", [False, True], ids=["padded", "packed"])
def test_training_and_test_see_the_same_image(model, make_processor, make_image, packing):
    """The released code's fault: the mean over the whole sequence has the answer in training, and not at test."""
    processor, image, seen = make_processor(TilingConfig()), make_image(60, 97), []
    model.model.multi_modal_projector.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    question = Turn("human", "<image>\nWhat is in the picture?")
    collate = Collator(0, packing, question_finder(model.config))
    with torch.no_grad():
        model(**processor.encode_prompts([((question,), [image])]))
        for answer in ("A red car.", "0123456789" * 9):
            sample = Sample(
                "", (question, Turn("gpt", answer), Turn("human", "Hi"), Turn("gpt", "Yes.")), ("",), "", ()
            )
            rules = {"template": "qwen_1_5", "label_rule": "answers", "max_length": 1024}
            model(**collate([processor.encode_sample(sample, [image], [], **rules)]))
    assert torch.equal(seen[1], seen[0])
    assert torch.equal(seen[2], seen[0])


def test_the_question_decides(model):
    """And without one the biases do, alike for all crops."""
    fusion = model.model.fusion
    states = {layer: torch.randn(3, 16, 32) for layer in (1, 2, 3, 4)}
    means = torch.randn(3, 24) * torch.tensor([[1.0], [1.0], [0.0]])
    found = fusion.guided_visual_input(states, Questions(means, torch.tensor([True, True, False])))
    router = fusion.router
    weights = (router.linear_2.weight @ router.linear_1.bias.clamp(min=0) + router.linear_2.bias).softmax(0)
    total = states[4][2] + sum(weights[layer - 1] * states[layer][2] for layer in (1, 2, 3, 4))
    torch.testing.assert_close(found[2], torch.nn.functional.layer_norm(total, (32,)), atol=1e-5, rtol=1e-4)
    swapped = fusion.guided_visual_input(states, Questions(means[[1, 0, 2]], torch.ones(3, dtype=torch.bool)))
    assert (swapped - found).abs().amax((1, 2)).gt(1e-3).tolist() == [True, True, False]


def test_sizes():
    """W1 896 to 512, W2 512 to 26, the norm: 0.47 M; all states of the tower are kept, the last one first."""
    config = TgifConfig().resolved(26, 24)
    assert config.tower_layers(26) == (26, *range(1, 26))
    with torch.device("meta"):
        fusion = Tgif(config, Sizes(26, 1152, 24, 896, 729))
    expected = (896 + 1) * 512 + (512 + 1) * 26 + 2 * 1152
    assert sum(parameter.numel() for parameter in fusion.parameters()) == expected == 474_906


@pytest.mark.parametrize(("initialisation", "norm"), [("own", 1), ("zero", 0)])
def test_its_first_weights(make_model, initialisation, norm):
    fusion = make_model(TilingConfig(), TgifConfig(initialisation=initialisation)).model.fusion
    assert (fusion.norm.weight == norm).all()
    assert (fusion.norm.bias == 0).all()
    for linear in (fusion.router.linear_1, fusion.router.linear_2):
        bound = linear.in_features**-0.5
        assert 0.9 * bound < linear.weight.abs().max() <= bound
        assert linear.bias.abs().max() > 0
