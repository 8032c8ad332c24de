"""What the harness asks, in our terms: settings, dialogues and noise."""

import numpy as np
import pytest
from lmms_eval.protocol import ChatMessages
from PIL import Image

from llava.data.schema import Turn
from llava.errors import LlavaError
from llava.eval.messages import Settings, dialogue_from, noise_like, settings_from

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


@pytest.mark.parametrize("kind", ["video", "audio"])
def test_other_media_are_refused_by_name(kind):
    with pytest.raises(LlavaError, match=f"this model reads text and images, not {kind}"):
        dialogue_of(("user", (kind, "clip"), "Hi"))


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
