"""What a method may answer beside those that there are: a wider visual input, and more tokens of a crop."""

from dataclasses import dataclass, field

import pytest
import torch

from llava.anyres import TilingConfig, image_layout
from llava.data.schema import Turn
from llava.errors import LlavaError
from llava.fusion.base import Fusion
from llava.fusion.config import FusionConfig
from llava.layout_counts import count_layouts
from llava.mllm.cost import forward_cost
from tests.conftest import GRID, TILE


class Pooled(Fusion):
    """The last state and the one before beside each other, with three tokens of their mean behind each crop's own."""

    def visual_input(self, states):
        """(C, T + 3, 2 * width)"""
        both = torch.cat([states[4], states[3]], -1)
        return torch.cat([both, both.mean(1, keepdim=True).expand(-1, 3, -1)], 1)


@dataclass(frozen=True)
class PooledConfig(FusionConfig):
    """Pooled's."""

    method: str = field(init=False, default="pooled")

    @staticmethod
    def implementation():
        """Pooled."""
        return Pooled

    def tower_layers(self, num_vision_layers):
        """The last two."""
        return (num_vision_layers, num_vision_layers - 1)

    def visual_width(self, sizes):
        """Of two states."""
        return 2 * sizes.vision_width

    def extra_tokens(self, crop_tokens):
        """Three."""
        return 3


@pytest.fixture
def model(make_model):
    return make_model(TilingConfig(), PooledConfig())


def test_the_language_model_reads_them(model, make_processor, make_image):
    """The processor, which has the model's tiling, leaves as many places; the tokens are the projected input."""
    processor = make_processor(model.config.tiling)
    inputs = processor.encode_prompts(
        [((Turn("human", "<image> <image>\nWhich?"),), [make_image(), make_image(56, 56)])]
    )
    assert (inputs["input_ids"] == model.config.image_token_id).sum() == 2 * (16 + 3)
    features = model.get_image_features(inputs["pixel_values"], inputs["image_sizes"], inputs["batch_num_images"])
    assert features.deepstack_features is None
    *_, before, last = model.model.vision_tower(inputs["pixel_values"], [3, 4])
    tokens = torch.cat([last, before], -1)
    for image, found in enumerate(features.pooler_output):
        means = tokens[image].mean(0).expand(3, -1)
        expected = model.model.multi_modal_projector(torch.cat([tokens[image], means]))
        torch.testing.assert_close(found, expected)
    assert model(**inputs, labels=inputs["input_ids"]).loss.isfinite()


def test_they_are_counted(model):
    tiling, side = model.config.tiling, model.config.patches_per_side
    assert image_layout(100, 70, tiling, tile=TILE, side=side, several_images=False).num_tokens == 19
    sizes = torch.tensor([[100, 70], [56, 56]]).numpy()
    crops, tokens = count_layouts(sizes, torch.tensor([False, True]).numpy(), tiling, tile=TILE, side=side)
    assert (crops.tolist(), tokens.tolist()) == ([1, 1], [19, 19])


def test_they_cost_what_the_wider_projector_costs(model, make_config):
    plain = forward_cost(make_config(TilingConfig(), None))
    first, second = 2 * 24 * 32, 2 * 24 * 24  # of a token
    assert forward_cost(model.config).crop - plain.crop == 19 * (2 * first + second) - 16 * (first + second)


def test_a_map_of_tiles_and_videos_have_no_place_for_them(model, make_config, make_processor):
    with pytest.raises(LlavaError, match="adds tokens to a crop has no place on a map of tiles: tiling mode anyres"):
        make_config(GRID, PooledConfig())
    with pytest.raises(LlavaError, match="adds tokens to a crop takes no videos"):
        make_processor(model.config.tiling).image_processor.video_layout(2)
    with pytest.raises(LlavaError, match="adds tokens to a crop takes no videos"):
        model.get_video_features(torch.zeros(2, 3, TILE, TILE), torch.tensor([2]))


def test_only_models_with_them_say_so(model, make_config):
    assert model.config.to_dict()["tiling"]["extra_tokens"] == 3
    assert "extra_tokens" not in make_config().to_dict()["tiling"]
