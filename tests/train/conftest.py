"""What a tiny run of all three stages starts from: a tower, a language model, data, and a file of overrides."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from transformers import Qwen2ForCausalLM, SiglipVisionModel

from llava.fusion.configs.manager import ManagerConfig
from llava.mllm import LlavaOVManagerForConditionalGeneration
from llava.train.recipe.load import load_recipe
from tests.clips import write_clip

IMAGE_SIZES = [(56, 56), (100, 70), (60, 130), (112, 112), (200, 90)]
TEXT_ONLY = {1, 4, 7, 9, 12, 15}  # in global batches of 4 this leaves one where one rank of two sees no image
VIDEO = {6}  # alone with its rank, or beside images
IMAGE_AND_VIDEO = {11}
SEVERAL_IMAGES = {0, 3, 5, 10, 13}  # one crop each: a rank of these alone packs no newline, the other one does


@pytest.fixture(scope="session")
def data_seed(request) -> int:
    return request.config.getoption("--data-seed")


@pytest.fixture(scope="session")
def start_folders(tmp_path_factory, make_config, tiny_tokenizer):
    """Folders `siglip` (one layer more than is used, with pooling head) and `qwen2`, as their publishers save them."""
    folder = tmp_path_factory.mktemp("start")
    torch.manual_seed(1)
    config = make_config(fusion=None)
    config.vision_config.num_hidden_layers += 1
    config.vision_config.vision_use_head = True
    SiglipVisionModel(config.vision_config).save_pretrained(folder / "siglip")
    Qwen2ForCausalLM(config.text_config).save_pretrained(folder / "qwen2")
    tiny_tokenizer.save_pretrained(folder / "qwen2")
    return folder


@pytest.fixture(scope="session")
def wide_start(tmp_path_factory, make_config, make_processor):
    """A checkpoint to start from, wide enough for 4 bits in blocks of 64, with managers that are not zero."""
    folder = tmp_path_factory.mktemp("wide")
    config = make_config(fusion=replace(ManagerConfig(interval=2), jitter="none"))
    for part in (config.text_config, config.vision_config):
        part.hidden_size, part.intermediate_size = 64, 128
    torch.manual_seed(0)
    model = LlavaOVManagerForConditionalGeneration(config)
    for manager in model.model.fusion.managers:
        torch.nn.init.normal_(manager.scores, std=0.3)
    model.save_pretrained(folder)
    make_processor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory):
    """16 records: one image, several, videos, text alone; captions.json for stage 1, turns.json after it."""
    folder = tmp_path_factory.mktemp("data")
    write_clip(folder / "clip.mp4", frames=24, fps=8)
    random = np.random.default_rng(0)
    captions, turns = [], []
    for index in range(16):
        width, height = IMAGE_SIZES[index % len(IMAGE_SIZES)]
        Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(folder / f"{index}.png")
        answer = "A red car." * (1 + index % 3)
        captions.append(_record(index, "<image>", answer, f"{index}.png"))
        if index in TEXT_ONLY:
            turns.append(_record(index, "What is 01 and 2?", answer))
        elif index in SEVERAL_IMAGES:
            turns.append(_record(index, "<image> <image>\nWhat is in the picture?", answer, [f"{index}.png", "0.png"]))
        elif index in VIDEO:
            turns.append(_record(index, "<image>\nWhat is in the picture?", answer, video="clip.mp4"))
        elif index in IMAGE_AND_VIDEO:
            question = "<video> <image>\nWhat is in the picture?"
            turns.append(_record(index, question, answer, f"{index}.png", video="clip.mp4"))
        else:
            turns.append(_record(index, "<image>\nWhat is in the picture?", answer, f"{index}.png"))
    for name, records in (("captions", captions), ("turns", turns)):
        (folder / f"{name}.json").write_text(json.dumps(records))
        entries = [{"json_path": f"{name}.json", "sampling_strategy": "all"}]
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({"datasets": entries}))
    return folder


def _record(index: int, question: str, answer: str, image=None, video=None) -> dict:
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"id": f"sample-{index}", "conversations": turns, "image": image, "video": video}


@pytest.fixture(scope="session")
def tiny_keys(start_folders, data_folder):
    """A function: stage ("1", "1_5", "2") to the dotted keys that make its shipped recipe tiny and fast."""

    def keys(stage: str, **changes) -> dict:
        names = "captions" if stage == "1" else "turns"
        start = {
            "model.vision_tower": f"{start_folders}/siglip",
            "model.language_model": f"{start_folders}/qwen2",
        }
        return {
            **(start if stage == "1" else {}),
            "fusion.interval": 2,
            "fusion.jitter": "none",
            "tiling.pinpoints": "(1x1),...,(2x2)",
            "data.mixture": f"{data_folder}/{names}.yaml",
            "data.image_folder": str(data_folder),
            "data.max_length": 512,
            "data.workers": 0,
            "optim.global_batch_size": 4,
            "optim.batch_size": 2,
            "run.deepspeed": None,
            "run.collective_timeout": 60,
            **changes,
        }

    return keys


@pytest.fixture
def tiny_recipe(tiny_keys, tmp_path):
    """A function: stage and arm to the shipped recipe made tiny, with any key changed; its output is in tmp_path."""

    def make(stage: str = "1", arm: str = "grid_manager", **changes):
        keys = tiny_keys(stage, **{"run.output_dir": f"{tmp_path}/stage{stage}", **changes})
        if "manager" not in arm or "fusion.method" in changes:  # another method has other keys
            keys = {key: value for key, value in keys.items() if key in changes or not key.startswith("fusion.")}
        return load_recipe(f"scripts/train/recipes/mllm/stage{stage}.yaml", arm, keys=keys)

    return make
