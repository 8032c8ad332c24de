"""What only sti has: its pools, and where its tokens are counted; test_methods.py compares it with its slow twin."""

import pytest
import torch

from llava.anyres import TilingConfig
from llava.data.dataset import SupervisedDataset
from llava.data.inspect import inspect_samples
from llava.data.processor import LlavaOVManagerProcessor
from llava.data.schema import Sample, Turn
from llava.errors import LlavaError
from llava.fusion.config import Sizes
from llava.fusion.configs.sti import StiConfig
from llava.fusion.sti import Sti, pooled
from tests.conftest import TILE


@pytest.fixture
def model(make_model):
    return make_model(TilingConfig(), StiConfig())


def test_pools_cross_rows_and_leave_out_what_is_behind_the_last():
    """As the released code's: means of tokens 0 to 7, 8 to 15, ...; of 27 x 27 tokens the last is in none."""
    state = torch.arange(729.0)[None, :, None]
    assert pooled(state, 8)[0, :, 0].tolist() == [8 * number + 3.5 for number in range(91)]
    assert StiConfig().extra_tokens(729) == 182


def test_a_data_set_counts_them_where_there_are_no_videos(model, make_processor, make_image, tmp_path):
    """A start sizes its samples before it reads one, and asks for videos only where some are."""
    processor = make_processor(model.config.tiling)
    make_image(100, 70).save(tmp_path / "a.png")
    turns = (Turn("human", "<image>\nWhat is it?"), Turn("gpt", "A car."))
    samples = [Sample("0", turns, ("a.png",), "", ()), Sample("1", turns, ("a.png",), "", ())]
    dataset = SupervisedDataset(samples, processor, image_folder=tmp_path)
    sizes = dataset.sizes(inspect_samples(samples, tmp_path))
    text = dataset.text_sizes()
    assert (sizes.tokens - text.tokens).tolist() == [20, 20]
    assert dataset[0]["input_ids"].count(processor.image_token_id) == 20


def test_the_processor_that_is_saved_with_the_model_leaves_their_places(model, make_processor, make_image, tmp_path):
    make_processor(model.config.tiling).save_pretrained(tmp_path)
    processor = LlavaOVManagerProcessor.from_pretrained(tmp_path)
    images = [make_image(150, 97), make_image(40, 90)]
    inputs = processor.encode_prompts([((Turn("human", "<image> <image>\nWhich?"),), images)])
    assert (inputs["input_ids"] == processor.image_token_id).sum() == 2 * 20


def test_layers_and_parameters_at_the_real_sizes():
    """The 8th and the 16th, and no parameters."""
    config = StiConfig().resolved(26, 24)
    assert config.vision_layers == (8, 16)
    assert config.tower_layers(26) == (26, 8, 16)
    assert sum(p.numel() for p in Sti(config, Sizes(26, 1152, 24, 896, 729)).parameters()) == 0


def test_videos_are_refused_by_the_model_too(model):
    with pytest.raises(LlavaError, match="adds tokens to a crop takes no videos, whose frames are pooled"):
        model.get_video_features(torch.zeros(2, 3, TILE, TILE), torch.tensor([2]))
