"""Prompts are prepared by threads, with uint8 pixels: the same bits and answers as normalised pixels of one thread."""

import threading

import pytest
import torch

from llava.data.image_processor import LlavaOVManagerImageProcessor
from llava.data.placeholders import with_places
from llava.data.schema import Dialogue, Turn
from llava.engine.engine import Engine
from llava.engine.kept_cache import KeptCache
from llava.engine.read_ahead import read_ahead

CLIP = ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])


@pytest.fixture(scope="module")
def engine(make_model, make_processor):
    processor = make_processor()
    processor.image_processor.image_mean, processor.image_processor.image_std = CLIP
    return Engine(make_model(), processor)


@pytest.fixture(scope="module")
def dialogues(make_image):
    clip = [make_image(70, 40, seed) for seed in range(3)]
    return [
        Dialogue([Turn("human", "What is in the picture?")], [make_image(100, 70)]),
        Dialogue([Turn("human", "Hello")]),
        Dialogue([Turn("human", "Compare <image> and <image>")], [make_image(60, 80, 1), make_image(90, 30, 2)]),
        Dialogue([Turn("human", "<video> <image>\nA red car?")], [make_image(150, 130, 3)], [clip]),
    ]


@pytest.fixture
def cutters(monkeypatch):
    """The threads that cut images and videos into crops."""
    threads = []

    def spied(cut):
        def spy(*args):
            threads.append(threading.current_thread())
            return cut(*args)

        return spy

    for name in ("crops", "frames"):
        monkeypatch.setattr(LlavaOVManagerImageProcessor, name, spied(getattr(LlavaOVManagerImageProcessor, name)))
    return threads


def test_prepared_prompts_have_the_bits_and_answers_of_normalised_pixels(engine, dialogues, cutters):
    inputs = engine.prepare(dialogues)
    floats = engine.processor.encode_prompts([with_places(dialogue) for dialogue in dialogues])
    assert {inputs[key].dtype for key in ("pixel_values", "pixel_values_videos")} == {torch.uint8}
    assert {floats[key].dtype for key in ("pixel_values", "pixel_values_videos")} == {torch.float32}
    with torch.inference_mode():
        expected = engine.model(**floats).logits
        assert torch.equal(engine.model(**inputs).logits, expected)
        answers = engine.model.generate(**floats, max_new_tokens=8)[:, floats["input_ids"].shape[1] :]
    answers = [answer.strip() for answer in engine.processor.tokenizer.batch_decode(answers, skip_special_tokens=True)]
    cutters.clear()
    assert engine.generate(dialogues, max_new_tokens=8) == answers
    assert engine.generate(dialogues, inputs=inputs, max_new_tokens=8) == answers
    assert len(cutters) == 4 + 1, "images and videos, not again where they were prepared"
    assert {thread.name.split("_")[0] for thread in cutters} == {"reader"}


def test_a_chat_cuts_in_threads_and_sees_the_bits_of_normalised_pixels(engine, dialogues, cutters):
    dialogue = with_places(dialogues[3])
    floats = engine.processor.encode_prompts([dialogue])
    model = engine.model.model
    with torch.inference_mode():
        inputs, _ = KeptCache().prepare(engine.model, engine.processor, dialogue)
        image = model.get_image_features(floats["pixel_values"], floats["image_sizes"])
        video = model.get_video_features(floats["pixel_values_videos"], floats["video_num_frames"])
    for modality, expected in (("image", image), ("video", video)):
        features = inputs["mm_encoder_outputs"][modality]
        for mine, theirs in zip(
            [features.pooler_output, *features.deepstack_features],
            [expected.pooler_output, *expected.deepstack_features],
            strict=True,
        ):
            assert torch.equal(mine[0], theirs[0])
    cutters.clear()
    list(engine.stream(dialogues[2], max_new_tokens=2))
    assert [thread.name.split("_")[0] for thread in cutters] == ["reader"] * 2


def test_one_ahead_in_order_and_errors_in_their_turn():
    begun, second = [], threading.Event()

    def work(item: int) -> int:
        assert threading.current_thread() is not threading.main_thread()
        begun.append(item)
        if item == 1:
            second.set()
        if item == 3:
            raise ValueError("three")
        return 10 * item

    results = read_ahead(work, iter(range(5)))
    assert not begun
    assert next(results) == 0
    assert second.wait(60), "the next is made while this one is used"
    assert begun == [0, 1]
    assert [next(results), next(results)] == [10, 20]
    with pytest.raises(ValueError, match="three"):
        next(results)
    assert list(read_ahead(work, [])) == []
