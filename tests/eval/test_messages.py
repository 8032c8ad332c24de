"""What the harness asks, in our terms: settings, dialogues and noise."""

import numpy as np
import pytest
from lmms_eval.protocol import ChatMessages
from PIL import Image

from llava.data.conversation import encode_prompt
from llava.data.schema import Turn
from llava.errors import LlavaError
from llava.eval.messages import Settings, dialogue_from, dialogue_of_context, noise_like, settings_from

GREEDY = Settings(max_new_tokens=1024, temperature=0.0, top_p=None, num_beams=1, stop=())


@pytest.mark.parametrize(
    ("gen_kwargs", "expected"),
    [
        ({}, GREEDY),
        ({"do_sample": False, "until": None}, GREEDY),
        ({"max_new_tokens": 16, "temperature": 0.0, "until": ["\n\n"]}, Settings(16, 0.0, None, 1, ())),
        ({"until": ["ASSISTANT:", "\n\n", ""]}, Settings(1024, 0.0, None, 1, ("ASSISTANT:",))),
        ({"until": "Q:"}, Settings(1024, 0.0, None, 1, ("Q:",))),
        ({"temperature": 0.2, "top_p": 0.9}, Settings(1024, 0.2, 0.9, 1, ())),
        ({"temperature": 0.2, "top_p": 0.9, "do_sample": False}, GREEDY),
        ({"do_sample": True}, Settings(1024, 1.0, None, 1, ())),
        ({"num_beams": 3, "image_aspect_ratio": "original"}, Settings(1024, 0.0, None, 3, ())),
    ],
)
def test_settings(gen_kwargs, expected):
    assert settings_from(gen_kwargs) == expected


def dialogue_of(*messages):
    """Messages as (role, parts), where a text is a string and anything else an image or a (type, url) pair."""

    def content(part):
        if isinstance(part, str):
            return {"type": "text", "text": part}
        kind, url = part if isinstance(part, tuple) else ("image", part)
        return {"type": kind, "url": url}

    chat = [{"role": role, "content": [content(part) for part in parts]} for role, *parts in messages]
    return dialogue_from(ChatMessages(messages=chat).messages)


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        (["Why?"], "Why?"),
        (["A", "Why?"], "<image>\nWhy?"),
        (["A", "B", "Why?"], "<image> <image>\nWhy?"),
        (["See ", "A", " and ", "B", ": why?"], "See <image> and <image>: why?"),
        (["A", "See ", "B"], "<image>\nSee <image>"),
        (["A", "Why, <image>?"], "Why, <image>?"),
    ],
)
def test_images_take_their_places(parts, text, make_image):
    images = {"A": make_image(8, 9, 1), "B": make_image(7, 6, 2)}
    dialogue = dialogue_of(("user", *(images.get(part, part) for part in parts)))
    assert dialogue.turns == [Turn("human", text)]
    assert [image.size for image in dialogue.images] == [images[part].size for part in parts if part in images]


def test_turns_keep_their_roles_and_grey_images_become_rgb():
    grey = Image.new("L", (5, 4), 9)
    dialogue = dialogue_of(("system", "Be brief."), ("user", grey, "Hi"), ("assistant", "Yes?"), ("user", "Why?"))
    assert dialogue.turns == [
        Turn("system", "Be brief."),
        Turn("human", "<image>\nHi"),
        Turn("gpt", "Yes?"),
        Turn("human", "Why?"),
    ]
    assert [(image.mode, image.size) for image in dialogue.images] == [("RGB", (5, 4))]


def test_images_may_be_paths_and_must_be_readable(tmp_path, make_image):
    make_image(12, 10).save(tmp_path / "page.png")
    assert dialogue_of(("user", ("image", str(tmp_path / "page.png")), "Hi")).images[0].size == (12, 10)
    with pytest.raises(LlavaError, match=r"none\.png does not exist"):
        dialogue_of(("user", ("image", str(tmp_path / "none.png")), "Hi"))


def test_audio_is_refused_by_name():
    with pytest.raises(LlavaError, match="this model reads text, images and videos, not audio"):
        dialogue_of(("user", ("audio", "clip"), "Hi"))
    with pytest.raises(LlavaError, match="this model reads text, images and videos, not a dict"):
        dialogue_of_context("Hi", [{"type": "audio", "array": [0.0], "sampling_rate": 8}])


def seen(frames) -> list[int]:
    """The indices of make_clip's grey frames, from their pixels."""
    return [round((np.asarray(frame).mean() - 20) / 5) for frame in frames]


def test_videos_are_paths_parts_of_files_or_frames(make_clip, make_image):
    """The clip has 40 frames, 8 in a second."""
    path = str(make_clip())
    part = {"type": "video", "url": path, "video_start": 1.0, "video_end": 2.0}
    frames = [Image.new("RGB", (6, 4), (20 + 5 * index,) * 3) for index in range(5)]
    messages = [
        {
            "role": "user",
            "content": [
                {"type": "image", "url": make_image(8, 9)},
                {"type": "video", "url": path},
                {"type": "text", "text": "Compare "},
                {"type": "video", "url": part},
                {"type": "text", "text": " and "},
                {"type": "video", "url": path, "start_time": 4.5},
                {"type": "video", "url": frames},
            ],
        }
    ]
    dialogue = dialogue_from(ChatMessages(messages=messages).messages, max_frames=4)
    assert dialogue.turns == [Turn("human", "<image> <video>\nCompare <video> and <video><video>")]
    assert [image.size for image in dialogue.images] == [(8, 9)]
    assert [seen(video) for video in dialogue.videos] == [
        [0, 13, 26, 39],
        [8, 10, 12, 15],
        [36, 37, 38, 39],
        [0, 1, 2, 4],
    ]
    empty = {"type": "video", "url": path, "start_time": 9, "end_time": 12}
    with pytest.raises(LlavaError, match=r"clip.mp4 has 40 frames at 8 per second, none from second 9\.0 to 12\.0"):
        dialogue_from(ChatMessages(messages=[{"role": "user", "content": [empty]}]).messages)
    with pytest.raises(LlavaError, match=r"nowhere\.mp4 does not exist"):
        dialogue_of(("user", ("video", "nowhere.mp4"), "Hi"))
    with pytest.raises(LlavaError, match="a video must be a path or its frames, found int"):
        dialogue_of(("user", ("video", 7), "Hi"))


@pytest.mark.parametrize(
    ("context", "visuals", "texts"),
    [
        ("Why?", None, ["Why?"]),
        ("Why?", ["A"], ["<image>\nWhy?"]),
        ("Is <image 1> or <image 2> red?", ["A", "B"], ["<image> <image>\nIs <image 1> or <image 2> red?"]),
        ("Is <image> or <image> red?", ["A", "B"], ["Is <image> or <image> red?"]),
        ("42", ["A"], ["<image>\n42"]),
        ("What moves?", ["clip"], ["<video>\nWhat moves?"]),
        ("<image>\nWhat moves?", ["clip"], ["<video>\nWhat moves?"]),
        ('[{"value": "Hi <image>"}, {"value": "Yes?"}, {"value": "Why?"}]', ["A"], ["Hi <image>", "Yes?", "Why?"]),
        ('[{"value": "Hi"}, {"value": "Yes?"}, {"value": "Why?"}]', ["A"], ["<image>\nHi", "Yes?", "Why?"]),
        ('["Hi"]', ["A"], ['<image>\n["Hi"]']),
    ],
)
def test_simple_requests_keep_their_text_behind_what_is_shown(context, visuals, texts, make_image, make_clip, tmp_path):
    make_image(7, 6).save(tmp_path / "b.PNG")
    known = {"A": make_image(8, 9).convert("CMYK"), "B": str(tmp_path / "b.PNG"), "clip": str(make_clip(3))}
    dialogue = dialogue_of_context(context, visuals and [known[name] for name in visuals])
    assert [turn.text for turn in dialogue.turns] == texts
    assert [turn.role for turn in dialogue.turns] == ["human", "gpt", "human"][: len(texts)]
    sizes = {"A": (8, 9), "B": (7, 6)}
    assert [image.size for image in dialogue.images] == [sizes[name] for name in visuals or [] if name in sizes]
    assert all(image.mode == "RGB" for image in dialogue.images)
    assert [len(video) for video in dialogue.videos] == [32] * (visuals == ["clip"])


def test_a_documents_own_words_are_no_places(make_image, tiny_tokenizer):
    """What a question of `llava eval` says of `<image>` and `<video>` is read as it is written, behind the image."""
    question, image = "What does <image> show? <video>, <image 1>", make_image(8, 9)
    message = {"role": "user", "content": [{"type": "image", "url": image}, {"type": "text", "text": question}]}
    chat = dialogue_from(ChatMessages(messages=[message]).messages, places=False)
    dialogue = dialogue_of_context(question, [image], places=False)
    assert dialogue.turns == chat.turns
    ids = encode_prompt(tiny_tokenizer, dialogue.turns, images=1)
    place = tiny_tokenizer.convert_tokens_to_ids("<image>")
    spelled = tiny_tokenizer(f"\n{question}", add_special_tokens=False, split_special_tokens=True)["input_ids"]
    start = ids.index(place) + 1
    assert ids.count(place) == 1
    assert ids[start : start + len(spelled)] == spelled
    assert ids[start + len(spelled)] == tiny_tokenizer.convert_tokens_to_ids("<|im_end|>")


def test_noise_is_uniform_of_the_same_size_and_seeded(make_image):
    image = make_image(64, 48)
    noise = noise_like(image, 3, 0)
    pixels = np.asarray(noise)
    assert (noise.size, noise.mode) == ((64, 48), "RGB")
    assert (pixels.min(), pixels.max()) == (0, 255)
    assert abs(pixels.mean() - 127.5) < 3
    assert np.array_equal(pixels, np.asarray(noise_like(make_image(64, 48, seed=9), 3, 0)))
    assert not np.array_equal(pixels, np.asarray(noise_like(image, 3, 1)))
    assert not np.array_equal(pixels, np.asarray(noise_like(image, 4, 0)))
