"""The baseline equals transformers' LlavaOnevision with the same weights: tokens, tiles, logits and generation.

Its settings, as a TilingConfig: anyres_max_9, spatial_unpad, a newline after one crop, rounding. Its pinpoints are
(height, width); ours (width, height).
"""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import (
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessorPil,
    LlavaOnevisionModel,
    LlavaOnevisionProcessor,
)
from transformers.models.llava_onevision.modeling_llava_onevision import image_size_to_num_patches

from llava.anyres import TilingConfig, image_layout
from llava.data.schema import Turn
from llava.mllm.packing import pack_image
from tests.conftest import GRID, PATCH, TILE
from tests.mllm.test_token_counts import SIZES

ONEVISION = replace(GRID, newline_after_one_crop=True, unpad_rounding="round")
REAL = TilingConfig.from_llava("anyres_max_9", "spatial_unpad", "(1x1),...,(6x6)", 384)
REAL = replace(REAL, newline_after_one_crop=True, unpad_rounding="round")
STEPS = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}


def swapped(tiling: TilingConfig) -> list[list[int]]:
    """Our pinpoints as transformers has them."""
    return [[height, width] for width, height in tiling.pinpoints]


@pytest.fixture(scope="module")
def peers(make_model, tiny_tokenizer):
    """Our baseline and transformers' model with its weights."""
    ours = make_model(ONEVISION, fusion=None)
    config = LlavaOnevisionConfig(
        vision_config=ours.config.vision_config,
        text_config=ours.config.text_config,
        image_token_index=ours.config.image_token_id,
        video_token_index=ours.config.video_token_id,
        image_grid_pinpoints=swapped(ONEVISION),
        tie_word_embeddings=True,
    )
    theirs = LlavaOnevisionForConditionalGeneration(config).eval()
    weights = {name.replace("image_newline.weight", "image_newline"): w for name, w in ours.state_dict().items()}
    theirs.load_state_dict(weights)
    theirs.generation_config.eos_token_id = ours.generation_config.eos_token_id = tiny_tokenizer.eos_token_id
    theirs.generation_config.pad_token_id = ours.generation_config.pad_token_id = tiny_tokenizer.pad_token_id
    return ours, theirs


@pytest.fixture(scope="module")
def processor(make_processor):
    return make_processor(ONEVISION)


def their_inputs(inputs: dict) -> dict:
    """Videos of one length, stacked; each is one sample's."""
    theirs = {name: value for name, value in inputs.items() if "video" not in name}
    if "pixel_values_videos" in inputs:
        frames = inputs["video_num_frames"]
        assert len(set(frames.tolist())) == 1, "transformers takes videos of one length"
        theirs["pixel_values_videos"] = inputs["pixel_values_videos"].unflatten(0, (len(frames), -1))
    return theirs


def assert_equal_logits_and_tokens(peers, inputs: dict) -> None:
    ours, theirs = peers
    attended = inputs["attention_mask"].bool()
    with torch.no_grad():
        found, expected = ours(**inputs).logits, theirs(**their_inputs(inputs)).logits
    torch.testing.assert_close(found[attended], expected[attended], atol=2e-5, rtol=1e-5)
    assert torch.equal(ours.generate(**inputs, **STEPS), theirs.generate(**their_inputs(inputs), **STEPS))


def image_dialogue(images, text="What is in the picture?"):
    return ((Turn("human", "<image> " * (len(images) - 1) + "<image>\n" + text),), images, [])


def random_sizes(count: int, seed: int) -> list[tuple[int, int]]:
    rng = np.random.default_rng(seed)
    return [tuple(map(int, np.exp(rng.uniform(np.log(5), np.log(500), 2)))) for _ in range(count)]


@pytest.mark.parametrize("size", random_sizes(12, seed=0), ids=str)
def test_one_image(peers, processor, make_image, size):
    assert_equal_logits_and_tokens(peers, processor.encode_prompts([image_dialogue([make_image(*size)])]))


@pytest.mark.parametrize("seed", range(6))
def test_left_padded_batches_of_one_several_and_no_images(peers, processor, make_image, seed):
    rng = np.random.default_rng(seed)
    sizes = iter(random_sizes(20, seed))
    counts = rng.permutation([1, 1, 0, int(rng.integers(2, 5))])
    texts = ["What is it?", "A car?", "01?", "What is in the picture? A red car."]
    dialogues = [
        image_dialogue([make_image(*next(sizes), seed=index) for index in range(count)], text)
        if count
        else ((Turn("human", text),), [], [])
        for count, text in zip(counts, texts)
    ]
    inputs = processor.encode_prompts(dialogues)
    assert not inputs["attention_mask"].all()
    assert_equal_logits_and_tokens(peers, inputs)


@pytest.mark.parametrize("frames", [1, 2, 5])
def test_videos_and_a_mixed_batch(peers, processor, make_image, frames):
    clips = [[make_image(70, 40, 10 * clip + frame) for frame in range(frames)] for clip in range(2)]
    video = (Turn("human", "<video>\nWhat is in the picture?"),)
    assert_equal_logits_and_tokens(peers, processor.encode_prompts([(video, [], clips[:1])]))
    both = (Turn("human", "<image> <video>\nA car?"),)
    dialogues = [(video, [], clips[:1]), image_dialogue([make_image(150, 97)]), (both, [make_image(40, 90)], clips[1:])]
    assert_equal_logits_and_tokens(peers, processor.encode_prompts(dialogues))


@pytest.fixture(scope="module")
def their_processor(tiny_tokenizer):
    """transformers' processor at our tiny sizes."""
    images = LlavaOnevisionImageProcessorPil(
        size={"height": TILE, "width": TILE},
        image_grid_pinpoints=swapped(ONEVISION),
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    return images, counting_processor(images, num_image_tokens=(TILE // PATCH) ** 2)


def counting_processor(images, num_image_tokens: int) -> LlavaOnevisionProcessor:
    """Only its arithmetic; a whole one wants torchvision for videos."""
    counting = LlavaOnevisionProcessor.__new__(LlavaOnevisionProcessor)
    counting.image_processor, counting.num_image_tokens = images, num_image_tokens
    counting.vision_aspect_ratio = "anyres_max_9"
    return counting


@pytest.mark.parametrize(
    "size", [*random_sizes(40, seed=1), (56, 56), (112, 56), (336, 336), (1000, 8), (9, 700)], ids=str
)
def test_tiles_of_one_image(processor, their_processor, make_image, size):
    images, counting = their_processor
    found = processor.image_processor([[make_image(*size)]])
    expected = images([make_image(*size)], return_tensors="pt")
    assert found["image_sizes"].tolist() == expected["image_sizes"].tolist()
    assert len(found["pixel_values"]) == expected["pixel_values"].shape[1]
    assert torch.equal(found["pixel_values"], expected["pixel_values"][0])
    tokens = processor.image_processor.layout(size, several_images=False).num_tokens
    assert tokens == counting._get_number_of_features(size[1], size[0], TILE, TILE)


def test_tiles_of_several_images(processor, their_processor, make_image):
    group = [make_image(*size, seed) for seed, size in enumerate(random_sizes(12, seed=2))]
    groups = [group[:2], group[2:3], group[3:]]
    found = processor.image_processor(groups)
    expected = their_processor[0](groups, return_tensors="pt")
    assert found["batch_num_images"].tolist() == expected["batch_num_images"].tolist()
    assert found["image_sizes"].tolist() == expected["image_sizes"].tolist()
    pending = iter(found["pixel_values"])
    for image, crops in enumerate(expected["pixel_values"]):  # padded to the most crops
        size = group[image].size
        for crop in crops[: processor.image_processor.layout(size, several_images=image != 2).num_crops]:
            assert torch.equal(next(pending), crop)
    assert next(pending, None) is None


def test_tokens_and_their_order_at_the_real_size_for_every_size_of_the_sweep():
    """transformers' own packing of numbered features, its count of placeholders, and its number of crops."""
    pinpoints = swapped(REAL)
    config = SimpleNamespace(
        vision_config=SimpleNamespace(image_size=384, patch_size=14), image_grid_pinpoints=pinpoints
    )
    counting = counting_processor(SimpleNamespace(image_grid_pinpoints=pinpoints), num_image_tokens=729)
    newline = torch.tensor([-1.0])
    for width, height in SIZES:
        layout = image_layout(width, height, REAL, tile=384, side=27, several_images=False)
        assert layout.num_crops == image_size_to_num_patches((height, width), pinpoints, 384)
        assert layout.num_tokens == counting._get_number_of_features(height, width, 384, 384)
        crops = torch.arange(layout.num_crops * 729, dtype=torch.float32).view(-1, 729, 1)
        expected, lengths = LlavaOnevisionModel.pack_image_features(
            SimpleNamespace(config=config), [crops], [(height, width)], newline
        )
        assert lengths.tolist() == [layout.num_tokens], (width, height)
        assert torch.equal(pack_image(crops, newline, layout, REAL.merge), expected[0]), (width, height)
