"""Videos through the model: pooling against a slow loop, managers, and mixed batches against samples one by one."""

import pytest
import torch

from llava.data.schema import Turn
from llava.errors import LlavaError
from llava.fusion.configs.manager import ManagerConfig
from llava.mllm.packing import pack_video
from tests.mllm.test_adaptive import make_adaptive  # noqa: F401  (a fixture)

POOLED = 4  # a side of 4 patches becomes 2, so 4 tokens a frame
VIDEO = (Turn("human", "<video>\nWhat is in the picture?"),)


@pytest.fixture
def clip(make_image):
    """A function: number of frames and seed to a list of images."""
    return lambda frames, seed=0: [make_image(70, 40, 10 * seed + frame) for frame in range(frames)]


@pytest.fixture
def dialogues(clip, make_image):
    """A video; an image of many tiles; both, the video first; two videos and two images; text."""
    image = make_image
    return [
        (VIDEO, [], [clip(3)]),
        ((Turn("human", "<image>\nWhat?"),), [image(150, 97)], []),
        ((Turn("human", "<video> <image>\nA car?"),), [image(100, 70, 1)], [clip(2, 1)]),
        (
            (Turn("human", "<image> <video>\nHi"), Turn("gpt", "Yes."), Turn("human", "<image> <video>\nWhich?")),
            [image(60, 40, 2), image(40, 90, 3)],
            [clip(1, 2), clip(4, 3)],
        ),
        ((Turn("human", "What is it?"),), [], []),
    ]


@pytest.mark.parametrize("side", [4, 5, 27])
def test_frames_are_pooled_as_a_slow_loop_does(side, make_processor):
    processor = make_processor()
    processor.image_processor.size, processor.image_processor.patch_size = side * 14, 14
    layout = processor.image_processor.video_layout(2)
    frames, newline = torch.randn(2, side * side, 3), torch.randn(3)
    packed = pack_video(frames, newline, layout)
    pooled = {4: 2, 5: 3, 27: 14}[side]
    assert packed.shape == (layout.num_tokens, 3) == (2 * pooled**2 + 1, 3)
    assert torch.equal(packed[-1], newline)
    scale = side / pooled
    for frame in range(2):
        for row in range(pooled):
            for column in range(pooled):
                expected = bilinear(
                    frames[frame].view(side, side, 3), (row + 0.5) * scale - 0.5, (column + 0.5) * scale - 0.5
                )
                torch.testing.assert_close(packed[frame * pooled**2 + row * pooled + column], expected)


def bilinear(grid, y: float, x: float):
    """The value at (y, x) of a (side, side, D) grid; coordinates outside are those of the border."""
    side = len(grid)
    y, x = max(y, 0.0), max(x, 0.0)
    top, left = int(y), int(x)
    below, right = min(top + 1, side - 1), min(left + 1, side - 1)
    upper = grid[top, left] * (1 - x + left) + grid[top, right] * (x - left)
    lower = grid[below, left] * (1 - x + left) + grid[below, right] * (x - left)
    return upper * (1 - y + top) + lower * (y - top)


def test_managers_add_the_sum_over_layers_of_the_pooled_maps(make_model, make_processor, clip):
    """Equation 14 over each layer's own pooled map: the model sums first and pools once."""
    model, processor = make_model(), make_processor()
    inputs = processor.encode_prompts([(VIDEO, [], [clip(3)])])
    pixels, frames = inputs["pixel_values_videos"], inputs["video_num_frames"]
    deltas = model.get_video_features(pixels, frames).deepstack_features
    inner, managed = model.model, model.config.fusion.vision_layers
    layout, newline = processor.image_processor.video_layout(3), inner.image_newline()
    maps = [inner.multi_modal_projector(state) for state in inner.vision_tower(pixels, list(managed))]
    embedded = [map_ + inner.fusion.layer_embedding[index] for index, map_ in enumerate(maps)]
    packed = [pack_video(map_, newline, layout) for map_ in embedded]
    assert len(deltas) == len(inner.fusion.managers) == 3
    for manager, (delta,) in zip(inner.fusion.managers, deltas):
        expected = sum(score * map_ for score, map_ in zip(manager.scores, packed))
        torch.testing.assert_close(delta, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("scope", ["all", "main", "grid"])
def test_frames_are_whole_images_to_a_scope(make_model, make_processor, clip, scope):
    model = make_model(fusion=ManagerConfig(interval=2, scope=scope))
    inputs = make_processor().encode_prompts([(VIDEO, [], [clip(2)])])
    deltas = model.get_video_features(inputs["pixel_values_videos"], inputs["video_num_frames"]).deepstack_features
    changed = deltas[0][0].abs().sum(-1) > 0
    assert not changed.any() if scope == "grid" else changed.all()


@pytest.mark.parametrize("managers", [None, "paper", "self", "last", "average", "cross"])
def test_a_mixed_batch_equals_its_samples_one_by_one(make_model, make_adaptive, make_processor, dialogues, managers):  # noqa: F811
    adaptive = managers not in (None, "paper")
    model, processor = make_adaptive(managers) if adaptive else make_model(fusion=managers), make_processor()
    settings = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False}
    batch = processor.encode_prompts(dialogues)
    with torch.no_grad():
        together = model(**batch).logits
        generated = {beams: model.generate(**batch, num_beams=beams, **settings)[:, -3:] for beams in (1, 2)}
        for row, dialogue in enumerate(dialogues):
            inputs = processor.encode_prompts([dialogue])
            alone = model(**inputs).logits[0]
            torch.testing.assert_close(together[row, -len(alone) :], alone, atol=1e-4, rtol=1e-4)
            for beams, tokens in generated.items():
                assert torch.equal(tokens[row], model.generate(**inputs, num_beams=beams, **settings)[0, -3:]), beams


def test_chunked_prefill_and_static_cache_give_the_same_tokens(make_model, make_processor, dialogues):
    model, inputs = make_model(), make_processor().encode_prompts(dialogues[2:3])
    settings = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    expected = model.generate(**inputs, **settings)
    for other in ({"prefill_chunk_size": 7}, {"cache_implementation": "static"}):
        assert torch.equal(model.generate(**inputs, **settings, **other), expected), other


def test_images_and_videos_pass_the_tower_together(make_model, make_processor, dialogues):
    model, inputs = make_model(), make_processor().encode_prompts(dialogues)
    passes = []
    model.model.vision_tower.register_forward_hook(lambda module, args, output: passes.append(len(args[0])))
    model(**inputs)
    assert passes == [len(inputs["pixel_values"]) + len(inputs["pixel_values_videos"])]


def test_videos_train_the_newline_and_the_managers(make_model, make_processor, dialogues):
    model, inputs = make_model(), make_processor().encode_prompts(dialogues[:1])
    model(**inputs, labels=inputs["input_ids"]).loss.backward()
    assert model.model.image_newline.weight.grad.abs().sum() > 0
    assert all(manager.scores.grad.abs().sum() > 0 for manager in model.model.fusion.managers)


def test_wrong_numbers_are_named(make_model, make_processor, dialogues):
    model, inputs = make_model(), make_processor().encode_prompts(dialogues[:1])
    pixels, frames = inputs["pixel_values_videos"], inputs["video_num_frames"]
    with pytest.raises(LlavaError, match="found 2 frames, but 1 videos call for 3"):
        model(**{**inputs, "pixel_values_videos": pixels[:2]})
    with pytest.raises(LlavaError, match="found 1 videos, but batch_num_videos adds up to 2"):
        model.get_video_features(pixels, frames, torch.tensor([2]))
    inputs["input_ids"][0, -1] = model.config.video_token_id
    with pytest.raises(LlavaError, match="found 14 video tokens but 13 features"):
        model(**inputs)
