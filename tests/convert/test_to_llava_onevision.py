"""Models in transformers' own format, loaded and run by plain transformers."""

import json
import random
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageTextToText,
    AutoTokenizer,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionProcessor,
)

from llava.anyres import TilingConfig
from llava.checkpoint.shards import read_tensors
from llava.errors import LlavaError
from tests.conftest import GRID, TILE
from tests.parts import LANGUAGE_MODELS, TOWERS

SAME = replace(GRID, newline_after_one_crop=True, unpad_rounding="round")  # nothing is different there
TILINGS = {
    "as transformers": SAME,
    "as released": GRID,
    "no budget": replace(SAME, max_tiles=None),
    "small budget": replace(SAME, max_tiles=2),
    "few pinpoints, wide first": replace(SAME, pinpoints=((3 * TILE, TILE), (TILE, 2 * TILE), (2 * TILE, 2 * TILE))),
}
TEXTS = {f"as transformers, {name}": {"language_model": kind, **text} for name, (kind, text) in LANGUAGE_MODELS.items()}
TILINGS |= dict.fromkeys(TEXTS, SAME)
PROMPT = "<|im_start|>user\n{visual}\nWhat is in the picture?<|im_end|>\n<|im_start|>assistant\n"


class Peer:
    """The exported folder through plain transformers, whose processor's constructor alone needs torchvision."""

    def __init__(self, folder):
        self.model, loading = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
        assert isinstance(self.model, LlavaOnevisionForConditionalGeneration)
        assert not any(loading.values()), loading
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.image_processor = AutoImageProcessor.from_pretrained(folder)
        assert type(self.image_processor).__name__ == "LlavaOnevisionImageProcessorPil"
        fields = json.loads((folder / "processor_config.json").read_text())
        assert fields["processor_class"] == "LlavaOnevisionProcessor"
        self.processor = object.__new__(LlavaOnevisionProcessor)
        for name, value in fields.items():
            setattr(self.processor, name, value)
        self.processor.image_processor = self.image_processor

    def inputs(self, images):
        """One sample of one or several images."""
        visual = self.image_processor([images], return_tensors="pt")
        tokens = [self.processor.replace_image_token(visual, index) for index in range(len(images))]
        text = PROMPT.format(visual=" ".join(tokens))
        return {**self.tokenizer(text, return_tensors="pt"), **visual}

    def video_inputs(self, frames):
        """One video, of frames that are resized already (the video processor needs torchvision)."""
        visual = {"pixel_values_videos": frames[None]}
        tokens = self.processor.replace_video_token(visual, 0)
        return {**self.tokenizer(PROMPT.format(visual=tokens), return_tensors="pt"), **visual}


def assert_equal(model, peer, ours, theirs):
    assert torch.equal(ours["input_ids"], theirs["input_ids"])
    with torch.no_grad():
        expected, found = model(**ours).logits, peer.model(**theirs).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", TILINGS)
def test_plain_transformers_computes_the_same(name, tmp_path, save_model, make_processor, make_image, export, capsys):
    tiling = TILINGS[name]
    model = save_model(tmp_path / "model", tiling, **TEXTS.get(name, {}))
    accept = ["--accept_differences"] if name == "as released" else []
    assert export(tmp_path / "model", "--out", tmp_path / "out", "--format", "llava_onevision", *accept) == 0
    printed = capsys.readouterr().out
    assert ("note: different from this model for prompts of several images" in printed) == (name == "as released")
    assert ("1 in 70,000 image sizes" in printed) == (name == "as released")
    peer, processor = Peer(tmp_path / "out"), make_processor(tiling)
    assert peer.tokenizer.chat_template == processor.chat_template
    sizes = random.Random(name)
    for seed in range(12):
        image = make_image(sizes.randint(20, 500), sizes.randint(20, 500), seed)
        ours, theirs = processor(images=image, text=PROMPT.format(visual="<image>")), peer.inputs([image])
        assert_equal(model, peer, ours, theirs)
    answers = [m.generate(**i, max_new_tokens=6) for m, i in ((model, ours), (peer.model, theirs))]
    assert torch.equal(*answers)

    video = [make_image(80, 60, seed) for seed in range(3)]
    ours = processor(videos=[video], text=PROMPT.format(visual="<video>"))
    assert_equal(model, peer, ours, peer.video_inputs(ours["pixel_values_videos"]))

    images = [make_image(90, 60, 1), make_image(30, 200, 2), make_image(56, 56, 3)]
    ours = processor(images=images, text=PROMPT.format(visual="<image> <image> <image>"))
    theirs = peer.inputs(images)
    if tiling.newline_after_one_crop:
        assert_equal(model, peer, ours, theirs)
    else:  # what the note says
        assert theirs["input_ids"].shape[1] - ours["input_ids"].shape[1] == len(images)


@pytest.mark.parametrize(("tied", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_weights_and_configuration_keep_their_kind(tmp_path, save_model, export, tied, dtype):
    model = save_model(tmp_path / "model", SAME, dtype=dtype)
    if not tied:
        model.config.text_config.tie_word_embeddings = model.config.tie_word_embeddings = False
        model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight))
        model.save_pretrained(tmp_path / "model")
    export(tmp_path / "model", "--out", tmp_path / "out", "--format", "llava_onevision")
    before, after = dict(read_tensors(tmp_path / "model")), dict(read_tensors(tmp_path / "out"))
    assert ("lm_head.weight" in after) == (not tied)
    assert after.pop("model.image_newline").equal(before.pop("model.image_newline.weight"))
    assert before.keys() == after.keys()
    assert all(tensor.dtype == dtype and tensor.equal(before[name]) for name, tensor in after.items())
    config = AutoConfig.from_pretrained(tmp_path / "out")
    assert (config.model_type, config.dtype, config.tie_word_embeddings) == ("llava_onevision", dtype, tied)
    assert config.image_token_id == model.config.image_token_id
    assert config.video_token_id == model.config.video_token_id
    assert config.vision_aspect_ratio == "anyres_max_9"
    assert config.image_grid_pinpoints[1] == [2 * TILE, TILE]  # (height, width) of the second, 1 wide and 2 high
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "out")
    tokens = torch.arange(8)[None]
    original = AutoModelForImageTextToText.from_pretrained(tmp_path / "model")
    assert torch.equal(loaded(tokens).logits, original(tokens).logits)


def test_the_folder_holds_what_transformers_needs(tmp_path, save_model, export):
    save_model(tmp_path / "model", SAME)
    (tmp_path / "model/trainer_state.json").write_text("{}")
    export(tmp_path / "model", "--out", tmp_path / "out", "--format", "llava_onevision")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "README.md",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "processor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    tokenizer = json.loads((tmp_path / "out/tokenizer_config.json").read_text())
    assert tokenizer["processor_class"] == "LlavaOnevisionProcessor"
    with safe_open(tmp_path / "out/model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


REFUSED = {
    "flat": TilingConfig("anyres", "flat", 9, SAME.pinpoints, True, "round"),
    "spatial": TilingConfig("anyres", "spatial", 9, SAME.pinpoints, True, "round"),
    "square": TilingConfig("square", newline_after_one_crop=True),
    "pad": TilingConfig("pad", newline_after_one_crop=True),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_tiling_without_words_is_refused(name, tmp_path, save_model, export):
    save_model(tmp_path / "model", REFUSED[name])
    with pytest.raises(LlavaError, match=f"tiling is {REFUSED[name].mode} with merge {REFUSED[name].merge}"):
        export(tmp_path / "model", "--out", tmp_path / "out", "--format", "llava_onevision", "--accept_differences")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", sorted(TOWERS.keys() - {"siglip2"}))
def test_other_towers_are_refused(name, tmp_path, save_model, export):
    """They have tokens beside the patches, for which the format has no number."""
    save_model(tmp_path / "model", TilingConfig(), tower=TOWERS[name])
    told = f"tower is of type {TOWERS[name].model_type}; llava_onevision is written of siglip_vision_model alone: "
    with pytest.raises(LlavaError, match=f"{told}export it with --format remote_code"):
        export(tmp_path / "model", "--out", tmp_path / "out", "--format", "llava_onevision", "--accept_differences")
    assert not (tmp_path / "out").exists()


def test_managers_and_differences_are_refused(tmp_path, save_model, export):
    arguments = ("--out", tmp_path / "out", "--format", "llava_onevision")
    save_model(tmp_path / "managers", SAME, "paper")
    with pytest.raises(LlavaError, match=r"has 3 static managers before language-model layers 0, 2, 4, .* remote_code"):
        export(tmp_path / "managers", *arguments, "--accept_differences")
    save_model(tmp_path / "model", GRID)
    with pytest.raises(LlavaError, match=r"something else for prompts of several images: .* --accept_differences"):
        export(tmp_path / "model", *arguments)
    assert not (tmp_path / "out").exists()
