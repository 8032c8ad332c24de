"""Pixels as uint8, which the model normalises: the same bits, forward and backward, as normalised ones."""

import numpy as np
import pytest
import torch

from llava.data.collator import Collator
from llava.data.images import normalize
from llava.data.processor import LlavaOVManagerProcessor
from llava.data.schema import Sample, Turn
from llava.errors import LlavaError
from llava.mllm.visual_input import normalized

SIGLIP = ([0.5] * 3, [0.5] * 3)
CLIP = ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])
DIALOGUES = [  # question, images, frames of each video
    ("<image>\nWhat?", [(150, 97)], []),
    ("<image> <image>\nWhich?", [(60, 40), (40, 90)], []),
    ("<video> <image>\nA car?", [(100, 70)], [2]),
    ("What?", [], []),
]


@pytest.fixture(params=[SIGLIP, CLIP], ids=["siglip", "clip"])
def statistics(request):
    return request.param


@pytest.fixture
def batches(make_processor, make_image, statistics) -> tuple[dict, dict]:
    """The same samples as training gives them to a model, with uint8 pixels, and with the processor's floats."""
    processor: LlavaOVManagerProcessor = make_processor()
    processor.image_processor.image_mean, processor.image_processor.image_std = statistics
    items, images, videos = [], [], []
    for text, sizes, frames in DIALOGUES:
        images.append([make_image(*size, seed) for seed, size in enumerate(sizes)])
        videos.append([[make_image(70, 40, seed) for seed in range(count)] for count in frames])
        names = [("x",) * len(visuals) for visuals in (images[-1], videos[-1])]
        sample = Sample("1", (Turn("human", text), Turn("gpt", "A red car.")), names[0], "memory", names[1])
        settings = {"template": "qwen_1_5", "label_rule": "answers", "max_length": 1000}
        items.append(processor.encode_sample(sample, images[-1], videos[-1], **settings))
    training = Collator(processor.tokenizer.pad_token_id)(items)
    image_processor = processor.image_processor
    return training, {**training, **image_processor(images), **image_processor.encode_videos(videos)}


def test_every_value_has_the_bits_that_the_processor_gives_it(statistics, make_config):
    values = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3).transpose(0, 3, 1, 2)
    config = make_config()
    config.image_mean, config.image_std = statistics
    found = normalized(torch.from_numpy(values), config)
    assert found.dtype == torch.float32
    assert np.array_equal(found.numpy(), normalize(values, *statistics))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loss_and_gradients_are_those_of_normalised_pixels_bit_for_bit(make_model, batches, statistics, dtype):
    found = []
    mixed = {**batches[0], "pixel_values_videos": batches[1]["pixel_values_videos"]}
    for batch in (*batches, mixed):
        model = make_model().to(dtype).train()
        model.config.image_mean, model.config.image_std = statistics
        torch.manual_seed(0)  # the managers' noise
        model(**batch).loss.backward()
        found.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    uint8, floating, mixed = found
    assert batches[0]["pixel_values"].dtype == batches[0]["pixel_values_videos"].dtype == torch.uint8
    assert batches[1]["pixel_values"].dtype == batches[1]["pixel_values_videos"].dtype == torch.float32
    assert uint8["model.vision_tower.embeddings.patch_embedding.weight"].abs().max() > 0
    for name, gradient in floating.items():
        assert torch.equal(uint8[name], gradient), name
        assert torch.equal(mixed[name], gradient), name


def test_what_is_no_pixel_is_refused(make_model, batches):
    model, batch = make_model(), batches[0]
    with pytest.raises(LlavaError, match=r"must be normalised floating numbers, or uint8; found torch.int64"):
        model(**{**batch, "pixel_values": batch["pixel_values"].long()})
    model.config.image_mean = None
    with pytest.raises(LlavaError, match="has no image_mean and image_std"):
        model(**batch)
