"""What only layer_select has: its layers, parameters and first weights; test_methods.py has the slow twin."""

import pytest
import torch

from llava.anyres import TilingConfig
from llava.data.schema import Turn
from llava.errors import LlavaError
from llava.fusion.base import FusionCost, Product
from llava.fusion.config import Sizes
from llava.fusion.configs.layer_select import LayerSelectConfig
from llava.fusion.layer_select import LayerSelect

REAL = Sizes(26, 1152, 24, 896, 729)


def test_layers_and_parameters_at_the_real_sizes():
    """States 3, 18 and 23 of CLIP-L's 24; before layer floor(k N / L) - 1."""
    clip = LayerSelectConfig().resolved(24, 32)
    assert (clip.vision_layers, clip.injection_layers) == ((3, 18, 23), (3, 23, 29))
    config = LayerSelectConfig().resolved(26, 24)
    assert (config.vision_layers, config.injection_layers) == ((3, 20, 25), (1, 17, 22))
    assert config.tower_layers(26) == (26, 3, 20, 25)
    assert LayerSelectConfig(vision_layers=(0, 26)).resolved(26, 24).injection_layers == (0, 23)
    with torch.device("meta"):
        fusion = LayerSelect(config, REAL)
    assert sum(parameter.numel() for parameter in fusion.parameters()) == 3 * 1_836_800 == 5_510_400
    assert LayerSelect.cost(config, REAL) == FusionCost(
        products=(
            Product(3 * 729 * 2 * 1152 * 896, ({"fusion"}, {"vision_tower"})),
            Product(3 * 729 * 2 * 896 * 896, ({"fusion"}, {"fusion", "vision_tower"})),
        ),
        kept=3 * 729 * 3 * 896,
        first_layer=1,
    )


@pytest.mark.parametrize("initialisation", ["own", "zero"])
def test_its_first_weights_are_those_of_the_projector(make_model, initialisation):
    for projector in make_model(fusion=LayerSelectConfig(initialisation=initialisation)).model.fusion.projectors:
        drawn = [projector.linear_1] if initialisation == "zero" else [projector.linear_1, projector.linear_2]
        for linear in drawn:
            bound = linear.in_features**-0.5
            assert 0.9 * bound < linear.weight.abs().max() <= bound
            assert linear.bias.abs().max() > 0
        assert (projector.linear_2.weight.any(), projector.linear_2.bias.any()) == (len(drawn) == 2,) * 2


def test_every_image_of_a_batch_receives_its_own(make_model, make_processor, make_image):
    """Their code adds to the first image of a batch only."""
    model, processor = make_model(TilingConfig(), LayerSelectConfig()), make_processor(TilingConfig())
    images = [make_image(56, 56, seed) for seed in range(3)]
    prompts = [((Turn("human", "<image> <image>\nWhich?"),), images[:2]), ((Turn("human", "<image>"),), images[2:])]
    inputs = processor.encode_prompts(prompts)
    keys = ("pixel_values", "image_sizes", "batch_num_images")
    with torch.no_grad():
        found = model.get_image_features(**{key: inputs[key] for key in keys}).deepstack_features
        states = model.model.vision_tower(inputs["pixel_values"], [0, 3, 4])
    projectors = model.model.fusion.projectors
    for of_images, state, projector in zip(found, states, projectors, strict=True):
        assert len(of_images) == 3
        for tokens, crop in zip(of_images, state, strict=True):
            torch.testing.assert_close(tokens[:16], projector(crop))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"vision_layers": (1, 27)}, r"layer_select vision_layers \[27\] do not exist"),
        ({"vision_layers": ()}, "layer_select vision_layers must name at least one layer"),
        ({"injection_layers": (1, 2)}, r"fusion.vision_layers are 3, fusion.injection_layers 2: one for each"),
        ({"vision_layers": (1, 2, 3)}, r"layer_select injection_layers \[0, 0, 1\] must name none twice"),
    ],
)
def test_layers_that_cannot_be(fields, message):
    with pytest.raises(LlavaError, match=message):
        LayerSelectConfig(**fields).resolved(26, 24)
