import base64
import random

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor

import llava.mllm  # noqa: F401  registers the Auto classes
from llava.anyres import TilingConfig
from llava.data.conversation import add_visual_tokens
from llava.data.image_processor import LlavaOVManagerImageProcessor
from llava.data.processor import LlavaOVManagerProcessor
from llava.data.schema import Sample, Turn
from llava.errors import DataError, LlavaError

ENCODING = {"template": "qwen_1_5", "label_rule": "answers", "max_length": 4096}


def make_sample(question="<image>\nWhat?", answer="A red car.", images=("a.png",)) -> Sample:
    return Sample("page/7", (Turn("human", question), Turn("gpt", answer)), images, "data.json row 3")


def test_a_sample_has_as_many_placeholders_as_the_model_makes_features(make_processor, make_model, make_image):
    """A seeded sweep of sizes: what the processor counts is what the model packs."""
    processor, model = make_processor(), make_model()
    rng = random.Random(0)
    sizes = [(rng.randint(1, 900), rng.randint(1, 900)) for _ in range(40)] + [(1, 1), (900, 1), (1, 900), (56, 56)]
    for width, height in sizes:
        encoded = processor.encode_sample(make_sample(), [make_image(width, height)], **ENCODING)
        features = model.get_image_features(encoded["pixel_values"], encoded["image_sizes"]).pooler_output[0]
        assert encoded["input_ids"].count(processor.image_token_id) == len(features), (width, height)


def test_labels_of_image_tokens_are_ignored_and_lengths_agree(make_processor, make_image):
    processor = make_processor()
    encoded = processor.encode_sample(make_sample(), [make_image()], **{**ENCODING, "label_rule": "released"})
    assert len(encoded["input_ids"]) == len(encoded["labels"])
    for token, label in zip(encoded["input_ids"], encoded["labels"]):
        assert label == -100 if token == processor.image_token_id else label in (token, -100)


def test_several_images_are_padded_crops(make_processor, make_image):
    sample = make_sample("<image> <image>\nWhat?", images=("a.png", "b.png"))
    processor = make_processor()
    encoded = processor.encode_sample(sample, [make_image(90, 30), make_image(300, 200)], **ENCODING)
    assert encoded["pixel_values"].shape == (2, 3, 56, 56)
    assert encoded["input_ids"].count(processor.image_token_id) == 32
    assert encoded["image_sizes"].tolist() == [[30, 90], [200, 300]]


def test_transformers_convention_equals_prompt_encoding(make_processor, make_image):
    processor = make_processor()
    turns = (Turn("human", "<image>\nWhat?"),)
    image = make_image()
    expected = processor.encode_prompts([(turns, [image]), ((Turn("human", "Hi"),), [])])
    messages = [[{"role": "user", "content": text}] for text in ("<image>\nWhat?", "Hi")]
    texts = [processor.apply_chat_template(message, add_generation_prompt=True) for message in messages]
    processor.tokenizer.padding_side = "left"
    found = processor(text=texts, images=[[image], []])
    flat = processor(text=texts, images=[image])
    for batch in (found, flat):
        for key, value in expected.items():
            assert torch.equal(batch[key], value), key


def test_images_by_path_and_data_url(make_processor, make_image, tmp_path):
    """As a chat template's messages name them."""
    processor, image = make_processor(), make_image(200, 90)
    image.save(tmp_path / "a.png")
    url = f"data:image/png;base64,{base64.b64encode((tmp_path / 'a.png').read_bytes()).decode()}"
    expected = processor(text="<image> <image>", images=[image, image])
    found = processor(text="<image> <image>", images=[str(tmp_path / "a.png"), url])
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    messages = [{"role": "user", "content": [{"type": "image", "url": url}, {"type": "text", "text": "What?"}]}]
    asked = processor.apply_chat_template(
        messages, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
    )
    prompt = processor.apply_chat_template(messages, add_generation_prompt=True)
    expected = processor(text=prompt, images=[image])
    assert all(torch.equal(asked[key], expected[key]) for key in expected)
    with pytest.raises(DataError, match=r"video clip\.mp4 does not exist"):
        processor(text="<video>", videos=["clip.mp4"])


def test_the_chat_template_renders_the_same_prompt(make_processor, make_image):
    question = [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "What?"}]
    messages = [
        {"role": "user", "content": question},
        {"role": "assistant", "content": "A car."},
        {"role": "user", "content": "Sure?"},
    ]
    turns = (Turn("human", "<image> <image>\nWhat?"), Turn("gpt", "A car."), Turn("human", "Sure?"))
    processor, images = make_processor(), [make_image(), make_image(50, 60)]
    rendered = processor.apply_chat_template(messages, add_generation_prompt=True)
    expected = processor.encode_prompts([(turns, images)])
    assert torch.equal(processor(text=rendered, images=images)["input_ids"], expected["input_ids"])
    with pytest.raises(Exception, match="only text, images and videos can be shown, not audio"):
        processor.apply_chat_template([{"role": "user", "content": [{"type": "audio"}]}])


def test_it_is_saved_and_loaded_whole(make_processor, make_image, tmp_path):
    processor = make_processor()
    processor.save_pretrained(tmp_path)
    for loaded in (LlavaOVManagerProcessor.from_pretrained(tmp_path),):
        assert loaded.image_processor.tiling == processor.image_processor.tiling
        expected = processor.encode_sample(make_sample(), [make_image()], **ENCODING)
        found = loaded.encode_sample(make_sample(), [make_image()], **ENCODING)
        assert found["input_ids"] == expected["input_ids"]
        assert torch.equal(found["pixel_values"], expected["pixel_values"])


def test_auto_processor_finds_it_in_a_checkpoint(tiny_model_dir):
    assert type(AutoProcessor.from_pretrained(tiny_model_dir)) is LlavaOVManagerProcessor


def test_an_over_long_sample_is_named_with_both_numbers(make_processor, make_image):
    processor = make_processor()
    length = len(processor.encode_sample(make_sample(), [make_image()], **ENCODING)["input_ids"])
    with pytest.raises(
        DataError, match=rf"sample 'page/7' \(data.json row 3\): found {length} tokens but max_length is 50"
    ):
        processor.encode_sample(make_sample(), [make_image()], **{**ENCODING, "max_length": 50})


def test_truncation_keeps_images_whole_and_some_answer(make_processor, make_image):
    processor = make_processor()
    whole = processor.encode_sample(make_sample(), [make_image()], **ENCODING)
    length = len(whole["input_ids"])
    cut = {**ENCODING, "on_over_long": "truncate"}
    found = processor.encode_sample(make_sample(), [make_image()], **{**cut, "max_length": length - 4})
    assert found["input_ids"] == whole["input_ids"][:-4]
    with pytest.raises(DataError, match=r"found .* but max_length is 60, and .* no answer behind a whole image"):
        processor.encode_sample(make_sample(), [make_image()], **{**cut, "max_length": 60})
    last_image = length - whole["input_ids"][::-1].index(processor.image_token_id)
    with pytest.raises(DataError, match="leave no answer"):
        processor.encode_sample(make_sample(), [make_image()], **{**cut, "max_length": last_image + 1})


def test_truncation_drops_the_turns_whose_image_does_not_fit(make_processor, make_image):
    """A cut before or inside the third image leaves what a sample without that turn is."""
    processor, images = make_processor(), [make_image(), make_image(90, 90, 1), make_image(40, 30, 2)]
    first = (Turn("human", "<image> <image>\nWhat?"), Turn("gpt", "A red car."))
    second = (Turn("human", "<image>\nAnd here?"), Turn("gpt", "0123456789"))
    alone = processor.encode_sample(Sample("one", first, ("a.png", "b.png"), ""), images[:2], **ENCODING)
    both = Sample("two", first + second, ("a.png", "b.png", "c.png"), "data.json row 3")
    ids = processor.encode_sample(both, images, **ENCODING)["input_ids"]
    inside = len(ids) - ids[::-1].index(processor.image_token_id) - 3
    for limit in (inside, len(alone["input_ids"]), len(alone["input_ids"]) - 2):
        found = processor.encode_sample(both, images, **{**ENCODING, "on_over_long": "truncate", "max_length": limit})
        assert found["shortened"]
        assert found["input_ids"] == alone["input_ids"][:limit]
        assert found["labels"] == alone["labels"][:limit]
        assert torch.equal(found["pixel_values"], alone["pixel_values"])
        assert found["num_images"] == 2
    assert not alone["shortened"]


def test_truncation_refuses_a_last_image_that_would_be_tiled_anew(make_processor, make_image):
    """Two images are one crop each; the first alone is tiled, and has more tokens than both had."""
    turns = (Turn("human", "<image>\nWhat?"), Turn("gpt", "A."), Turn("human", "<image>\nAnd?"), Turn("gpt", "B."))
    sample = Sample("two", turns, ("a.png", "b.png"), "data.json row 3")
    settings = {**ENCODING, "on_over_long": "truncate", "max_length": 60}
    with pytest.raises(DataError, match=r"sample 'two' .* but max_length is 60, .* no answer behind a whole image"):
        make_processor().encode_sample(sample, [make_image(), make_image(90, 90)], **settings)


def test_images_can_be_made_smaller_until_they_fit(make_processor, make_model, make_image):
    processor = make_processor()
    shrink = {**ENCODING, "on_over_long": "shrink_images"}
    large = make_image(700, 500)
    whole = processor.encode_sample(make_sample(), [large], **ENCODING)
    for limit in (len(whole["input_ids"]) - 1, 100):
        found = processor.encode_sample(make_sample(), [large], **{**shrink, "max_length": limit})
        assert found["shortened"]
        assert len(found["input_ids"]) <= limit
        assert found["labels"][-5:] == whole["labels"][-5:]
        features = make_model().get_image_features(found["pixel_values"], found["image_sizes"]).pooler_output[0]
        assert found["input_ids"].count(processor.image_token_id) == len(features)
    height, width = found["image_sizes"][0].tolist()
    expected = processor.image_processor.crops(large.resize((width, height), Image.Resampling.BICUBIC), False)
    assert torch.equal(found["pixel_values"], torch.from_numpy(expected))
    with pytest.raises(DataError, match="max_length is 40, and smaller images would not help"):
        processor.encode_sample(make_sample(), [large], **{**shrink, "max_length": 40})


def test_a_video_has_as_many_placeholders_as_features(make_processor, make_model, make_image):
    processor, model = make_processor(), make_model()
    frames = [make_image(90, 40, seed) for seed in range(3)]
    arrays = np.stack([np.asarray(frame) for frame in frames])
    sample = make_sample("What?\n<video>", images=())
    found = processor.encode_sample(sample, [], [frames], **ENCODING)
    expected = torch.stack([torch.from_numpy(processor.image_processor.crops(frame, False)[0]) for frame in frames])
    assert torch.equal(found["pixel_values_videos"], expected)  # a frame is resized like a base crop
    assert torch.equal(processor.encode_sample(sample, [], [arrays], **ENCODING)["pixel_values_videos"], expected)
    features = model.get_video_features(found["pixel_values_videos"], found["video_num_frames"]).pooler_output[0]
    assert found["input_ids"].count(processor.video_token_id) == len(features) == 3 * 4 + 1
    assert found["num_videos"] == 1
    prompt = processor.tokenizer.decode([token for token in found["input_ids"] if token != processor.video_token_id])
    assert "user\n\nWhat?" in prompt  # the placeholder moved to the front
    with pytest.raises(DataError, match=r"found 1 <video> placeholders but 2 videos"):
        processor.encode_sample(sample, [], [frames, frames], **ENCODING)


def test_videos_in_transformers_convention_equal_prompt_encoding(make_processor, make_image):
    processor = make_processor()
    clip, other = [make_image(60, 60, seed) for seed in range(2)], np.zeros((3, 40, 50, 3), np.uint8)
    content = [{"type": "video"}, {"type": "image"}, {"type": "text", "text": "What?"}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    both = (Turn("human", "<video> <image>\nWhat?"),)
    plain = (Turn("human", "<video>\nWhat?"),)
    other_text = processor.apply_chat_template(
        [{"role": "user", "content": [content[0], content[2]]}], add_generation_prompt=True
    )
    expected = processor.encode_prompts([(both, [make_image()], [clip]), (plain, [], [other])])
    for videos in ([clip, other], [[clip], [other]]):
        found = processor(text=[text, other_text], images=[make_image()], videos=videos, padding_side="left")
        assert set(found) == set(expected)
        for key, value in expected.items():
            assert torch.equal(found[key], value), key
    assert set(expected) <= set(processor.model_input_names)
    alone = processor(text=other_text, videos=other)
    assert torch.equal(
        alone["pixel_values_videos"], processor.encode_prompts([(plain, [], [other])])["pixel_values_videos"]
    )


def test_placeholders_and_images_must_match(make_processor, make_image):
    with pytest.raises(DataError, match=r"sample 'page/7' .* found 1 <image> placeholders but 2 images"):
        make_processor().encode_sample(make_sample(), [make_image(), make_image()], **ENCODING)
    with pytest.raises(DataError, match=r"found \[1\] <image> placeholders in the texts but \[0\] images"):
        make_processor()(text="<image>")


@pytest.mark.parametrize(
    ("template", "turns", "message"),
    [
        ("qwen_1_5", [("gpt", "<image>"), ("human", "a"), ("gpt", "b")], "found 0 <image> placeholders in the prompt"),
        ("plain", [("human", "<image>"), ("gpt", "two <image>")], "found 1 <image> placeholders in the prompt but 2"),
        ("qwen_1_5", [("human", "<image>\nWhat?")], "has no answer to learn from"),
    ],
)
def test_what_a_template_leaves_out_is_noticed(make_processor, make_image, template, turns, message):
    images = [make_image()] * sum(text.count("<image>") for _, text in turns)
    sample = Sample("page/7", tuple(Turn(*turn) for turn in turns), ("a.png",) * len(images), "data.json row 3")
    with pytest.raises(DataError, match=f"sample 'page/7' .*{message}"):
        make_processor().encode_sample(sample, images, **{**ENCODING, "template": template})


def test_images_of_any_color_mode_are_read(make_processor, make_image):
    processor, image = make_processor(), make_image()
    turns = (Turn("human", "<image>\nWhat?"),)
    expected = processor.encode_prompts([(turns, [image.convert("L").convert("RGB")])])["pixel_values"]
    assert torch.equal(processor.encode_prompts([(turns, [image.convert("L")])])["pixel_values"], expected)


def test_a_tokenizer_without_the_image_token_is_refused(tiny_tokenizer):
    from transformers import AutoTokenizer

    from tests.paths import GOLDEN_DIR

    tokenizer = AutoTokenizer.from_pretrained(GOLDEN_DIR / "tokenizer")
    with pytest.raises(LlavaError, match="does not know the token <image>"):
        LlavaOVManagerProcessor(LlavaOVManagerImageProcessor(56, 14, TilingConfig()), tokenizer)
    with pytest.raises(LlavaError, match="<image> would get id 503, but the language model's vocabulary is 503"):
        add_visual_tokens(tokenizer, vocab_size=503)
