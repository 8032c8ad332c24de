"""What only deepstack has: where the tiles go, and its layers; test_methods.py compares it with its slow twin."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from llava.anyres import TilingConfig, image_layout
from llava.data.processor import LlavaOVManagerProcessor
from llava.data.schema import Turn
from llava.errors import LlavaError
from llava.fusion.config import Sizes
from llava.fusion.configs.deepstack import DeepstackConfig
from llava.fusion.deepstack import Deepstack, stack_grid
from llava.layout_counts import count_layouts
from llava.prepare_data.preview import PreviewedImage, describe_image
from tests.conftest import GRID, PATCH, TILE
from tests.fusion.twins.deepstack import DeepstackTwin
from tests.fusion.twins.twin import slow_logits

SIDE = TILE // PATCH
PINPOINTS = [[56, 112], [112, 56], [112, 112], [168, 112]]
ANYRES = TilingConfig.from_llava("anyres", "spatial_unpad", PINPOINTS, TILE)
NEWLINE = replace(ANYRES, newline_after_one_crop=True)
FLAT = TilingConfig.from_llava("anyres", "flat", PINPOINTS, TILE)


@pytest.fixture
def samples(make_image):
    """A large image, none, two small ones, and one of another shape."""
    return [
        ((Turn("human", "<image>\nWhat is in the picture?"),), [make_image(150, 97)]),
        ((Turn("human", "What is it?"),), []),
        ((Turn("human", "<image> <image>\nWhich?"),), [make_image(60, 40, 1), make_image(40, 90, 2)]),
        ((Turn("human", "<image>\nWhat is it?"),), [make_image(40, 90, 3)]),
    ]


@pytest.fixture
def make(make_model, make_processor):
    """A function: a configuration, and a tiling, to a model whose gates are drawn and its processor."""

    def make(config: DeepstackConfig, tiling: TilingConfig = ANYRES):
        model = make_model(tiling, config)
        if model.model.fusion.gates is not None:
            torch.nn.init.normal_(model.model.fusion.gates.weight)
        return model, make_processor(model.config.tiling)

    return make


CASES = {
    "a stack before every second layer": (DeepstackConfig(start=0, interval=2, max_stacks=2), FLAT),
    "newline": (DeepstackConfig(initialisation="zero"), NEWLINE),
}


@pytest.mark.parametrize(("config", "tiling"), CASES.values(), ids=CASES)
def test_a_left_padded_batch_equals_the_slow_model(make, samples, config, tiling):
    """The released code adds at the image's place in the prompt without padding and images: wrong in such a batch."""
    model, processor = make(config, tiling)
    with torch.no_grad():
        together = model(**processor.encode_prompts(samples)).logits
        for row, (turns, images) in enumerate(samples):
            inputs = processor.encode_prompts([(turns, images)])
            crops = inputs["pixel_values"].split(1 if len(images) > 1 else 99) if images else ()
            visuals = list(zip(crops, [image.size for image in images], strict=True))
            expected = slow_logits(DeepstackTwin(model), inputs["input_ids"][0].tolist(), visuals)
            torch.testing.assert_close(together[row, -len(expected) :], expected, atol=1e-5, rtol=1e-4)


def test_a_token_receives_the_patches_that_show_what_it_shows(make_model, make_image):
    """Of an image that fills 3 x 2 tiles, stack 0 is every 3rd column and 2nd row of the tiles, beginning at once."""
    model = make_model(ANYRES, DeepstackConfig(max_stacks=6, start=0))
    visual = torch.arange(7 * 16).float()[:, None].expand(-1, 24).reshape(7, 16, 24)  # patch t of crop c: 16 c + t
    layout = image_layout(168, 112, model.config.tiling, tile=TILE, side=SIDE, several_images=False)
    stacks = model.model.fusion._stacks(visual, layout)
    assert layout.grid == (3, 2)
    assert len(stacks) == 6
    # Row 0 of the map: columns 0, 3, 6, 9, which are patches 0 and 3 of crop 1, 2 of crop 2, 1 of crop 3.
    assert stacks[0][:4, 0].tolist() == [16, 16 + 3, 32 + 2, 48 + 1]
    # Stack 5 is row 1, column 2: token 5, at row 1 and column 1, has row 3 and column 5: patch 13 of crop 2.
    assert stacks[5][5, 0] == 32 + 13
    every = torch.stack(stacks)[..., 0].flatten().sort().values
    assert every.tolist() == list(range(16, 7 * 16))


def test_padding_reaches_no_token(make_model):
    """A flat image in a square of tiles: what the tiles' padding becomes has no influence."""
    model = make_model(TilingConfig.from_llava("anyres", "flat", [[112, 112]], TILE), DeepstackConfig())
    layout = image_layout(112, 56, model.config.tiling, tile=TILE, side=SIDE, several_images=False)
    assert layout.window == (2, 0, 4, 8)
    visual = torch.ones(5, 16, 24)
    visual[1:3, :8] = visual[3:, 8:] = 100.0  # the first two rows of patches of the map, and the last two
    stacks = model.model.fusion._stacks(visual, layout)
    assert [(stack == 1).all().item() for stack in stacks] == [True] * 4 + [False]
    assert (stacks[4] == 0).all()


@pytest.mark.parametrize(
    ("grid", "most", "stacks"),
    [
        ((2, 2), 4, (2, 2)),
        ((2, 3), 9, (2, 3)),
        ((6, 6), 9, (3, 3)),
        ((6, 2), 9, (4, 2)),
        ((1, 6), 5, (1, 5)),
        ((6, 6), 1, (1, 1)),
    ],
)
def test_a_grid_of_more_tiles_than_stacks_is_shrunk(grid, most, stacks):
    assert stack_grid(*grid, most) == stacks


def test_an_image_so_long_that_unpadding_leaves_nothing_has_no_stack(make):
    model, _ = make(DeepstackConfig())
    layout = image_layout(4000, 2, model.config.tiling, tile=TILE, side=SIDE, several_images=False)
    assert layout.num_crops > 1
    assert 0 in layout.window[2:]
    assert all((stack == 0).all() for stack in model.model.fusion._stacks(torch.ones(layout.num_crops, 16, 24), layout))


def test_at_zero_it_is_the_model_that_sees_one_crop(make_model, make_processor, samples):
    """Bit for bit behind the tower; in whole as far as the tower's products of more crops round alike."""
    stacked, square = make_model(ANYRES, DeepstackConfig(initialisation="zero")), make_model(TilingConfig(), None)
    square.load_state_dict(stacked.state_dict(), strict=False)
    assert (stacked.model.fusion.gates.weight == 0).all()
    for sample in (samples[0], samples[3]):
        inputs = make_processor(stacked.config.tiling).encode_prompts([sample])
        alone = make_processor(TilingConfig()).encode_prompts([sample])
        assert torch.equal(inputs["input_ids"], alone["input_ids"])
        with torch.no_grad():
            features = stacked.get_image_features(inputs["pixel_values"], inputs["image_sizes"])
            logits = stacked(inputs["input_ids"], mm_encoder_outputs={"image": features}).logits
            features.deepstack_features = None
            assert torch.equal(square(inputs["input_ids"], mm_encoder_outputs={"image": features}).logits, logits)
            torch.testing.assert_close(square(**alone).logits, logits)


def test_the_first_crop_alone_has_places(make_processor, make_model, make_config, make_image, tmp_path):
    """Also of the processor that is saved with the model, and where many images are counted at once."""
    model = make_model(GRID, DeepstackConfig())
    make_processor(model.config.tiling).save_pretrained(tmp_path)
    processor = LlavaOVManagerProcessor.from_pretrained(tmp_path)
    assert processor.image_processor.tiling == model.config.tiling
    assert model.config.to_dict()["tiling"]["in_sequence"] == "main"
    assert "in_sequence" not in make_config().to_dict()["tiling"]
    inputs = processor.encode_prompts([((Turn("human", "<image>\nWhat?"),), [make_image(300, 200)])])
    assert len(inputs["pixel_values"]) > 10
    assert (inputs["input_ids"] == model.config.image_token_id).sum() == 16
    rng = np.random.default_rng(0)
    sizes, several = rng.integers(1, 500, (50, 2)), rng.integers(0, 2, 50).astype(bool)
    crops, tokens = count_layouts(sizes, several, model.config.tiling, tile=TILE, side=SIDE)
    layouts = [processor.image_processor.layout(tuple(size), more) for size, more in zip(sizes.tolist(), several)]
    assert crops.tolist() == [layout.num_crops for layout in layouts]
    assert tokens.tolist() == [layout.num_tokens for layout in layouts] == [16] * 50


def test_a_preview_says_where_the_tiles_go(make, make_image):
    _, processor = make(DeepstackConfig())
    layout = processor.image_processor.layout((112, 56), False)
    crops = processor.image_processor.crops(make_image(112, 56), False)
    assert describe_image(PreviewedImage("a.png", (112, 56), layout, 0, crops.transpose(0, 2, 3, 1), SIDE), 1) == [
        "image 1: a.png, 112 x 56 pixels, 16 tokens",
        "  crop 0, the whole image: 16",
        "  crops 1 to 2, 1 x 2 tiles: 4 x 8 patches, kept 4 x 8",
        "    patches kept in crops 1 to 2: 16 16",
        "    none in the sequence: the model's fusion takes them in by another way",
    ]


def test_layers_and_parameters_at_the_real_sizes():
    """No parameters; gates that start at zero have one vector of the width 896 for each of 9 stacks."""
    sizes = Sizes(26, 1152, 24, 896, 729)
    config = DeepstackConfig().resolved(26, 24)
    assert config.injection_layers == (1, 2, 3, 4, 5, 6, 7, 8, 9)
    assert sum(parameter.numel() for parameter in Deepstack(config, sizes).parameters()) == 0
    gated = Deepstack(DeepstackConfig(initialisation="zero").resolved(26, 24), sizes)
    assert sum(parameter.numel() for parameter in gated.parameters()) == 9 * 896 == 8064
    assert (gated.gates.weight == 0).all()


def test_trained_gates_are_of_their_stacks():
    plain, gated = (DeepstackConfig(initialisation=initial).resolved(26, 24) for initial in ("own", "zero"))
    assert plain.weights_follow() == {"initialisation": "own"}
    assert gated.weights_follow() == {"initialisation": "zero", "start": 1, "interval": 1, "max_stacks": 9}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"max_stacks": 24},
            r"max_stacks must be from 1 to 23, found 24: of 24 layers these are those from 1 on, every 1",
        ),
        ({"start": 20, "interval": 2, "max_stacks": 4}, r"max_stacks must be from 1 to 2, found 4: of 24 layers"),
        ({"max_stacks": 0}, r"max_stacks must be from 1 to 23, found 0: of 24 layers"),
        ({"start": 24}, r"^deepstack start must be from 0 to 23, a layer of the language model, found 24$"),
        ({"start": -1}, r"^deepstack start must be from 0 to 23, a layer of the language model, found -1$"),
        ({"interval": 0}, r"^deepstack interval must be at least 1, found 0$"),
    ],
)
def test_stacks_that_no_layer_is_left_for_are_refused(fields, message):
    """The released code drops them."""
    with pytest.raises(LlavaError, match=message):
        DeepstackConfig(**fields).resolved(26, 24)
