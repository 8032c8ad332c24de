"""Small random models with heads that vLLM's attention takes on a CPU, and mixed requests to them."""

from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image

from llava.anyres import TilingConfig
from llava.data.schema import Dialogue, Turn
from llava.fusion.config import FusionConfig
from llava.fusion.configs.deepstack import DeepstackConfig
from llava.fusion.configs.deepstack_qwen3 import DeepstackQwen3Config
from llava.fusion.configs.dense_connector import ConcatConfig, DciConfig, SciConfig
from llava.fusion.configs.igva import IgvaConfig
from llava.fusion.configs.layer_select import LayerSelectConfig
from llava.fusion.configs.manager import ManagerConfig
from llava.fusion.configs.mmfuser import MmfuserConfig
from llava.fusion.configs.none import NoneConfig
from llava.fusion.configs.sti import StiConfig
from llava.fusion.configs.tgif import TgifConfig
from llava.mllm import LlavaOVManagerForConditionalGeneration
from tests.conftest import GRID

SQUARE = TilingConfig()
MANAGERS = ManagerConfig(layer_set="paper", interval=2)
MODELS: dict[str, tuple[TilingConfig, FusionConfig]] = {
    "baseline": (SQUARE, NoneConfig()),
    "manager": (SQUARE, MANAGERS),
    "grid": (GRID, NoneConfig()),
    "grid_manager": (GRID, MANAGERS),
    "grid_deepstack": (GRID, DeepstackConfig()),
    "grid_deepstack_qwen3": (GRID, DeepstackQwen3Config(vision_layers=(1, 2, 3))),
    "grid_layer_select": (GRID, LayerSelectConfig(vision_layers=(1, 3))),
    "grid_concat": (GRID, ConcatConfig(vision_layers=(1, 2))),
    "grid_sci": (GRID, SciConfig(vision_layers=(1, 2))),
    "grid_dci": (GRID, DciConfig()),
    "grid_mmfuser": (GRID, MmfuserConfig(vision_layers=(1, 2, 3), heads=4)),
    "sti": (SQUARE, StiConfig(vision_layers=(1, 2))),
    "grid_tgif": (GRID, TgifConfig()),
    "grid_igva": (GRID, IgvaConfig()),
}


@dataclass
class Request:
    """A dialogue, and its messages as transformers' chat template takes them."""

    turns: list[Turn]
    images: list[Image.Image] = field(default_factory=list)
    videos: list[list[Image.Image]] = field(default_factory=list)

    @property
    def dialogue(self) -> Dialogue:
        return Dialogue(self.turns, self.images, self.videos)


def small_model(make_config, name: str) -> LlavaOVManagerForConditionalGeneration:
    """Random, no part of its fusion at zero, so that what the fusion does shows in every answer."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 128, "intermediate_size": 160, "max_position_embeddings": 4096, "initializer_range": 0.1}
    config = make_config(*MODELS[name], **sizes)
    config.image_mean = config.image_std = None  # as in older folders: the image processor's are taken
    model = LlavaOVManagerForConditionalGeneration(config).eval()
    for parameter in model.model.fusion.parameters():
        torch.nn.init.normal_(parameter, mean=0.1, std=0.2)
    return model


def mixed_requests(name: str, number: int, seed: int = 0) -> list[Request]:
    """Of one image or several, of all shapes, of videos, of text alone; long and short; some with beginnings alike."""
    fusion = MODELS[name][1]
    rng = np.random.default_rng([seed, *name.encode()])
    videos = not fusion.extra_tokens(16)
    shared = [_picture(rng) for _ in range(2)]
    long_text = "What is in the picture? A red car. " * 12
    requests = []
    for count in range(number):
        question = f"What is in the picture {rng.integers(1000)}?"
        human = question if count % 3 else long_text + question
        match count % 8:
            case 0:
                images, clips = [_picture(rng)], []
            case 1:
                images, clips = [shared[count % 2]], []  # again and again, by other questions
            case 2:
                images, clips = [_picture(rng) for _ in range(2 + count % 2)], []
            case 3:
                images, clips = [], []
            case 4 if videos:
                images, clips = [], [_clip(rng, 1 + count % 5)]
            case 5 if videos:
                images, clips = [_picture(rng)], [_clip(rng, 3)]
            case 6:
                images, clips = [shared[0], _picture(rng)], []  # the image of 1 among several: another cut
            case _:
                images, clips = [_picture(rng, wide=True)], []
        places = " ".join(["<image>"] * len(images) + ["<video>"] * len(clips))
        turns = [Turn("human", f"{places}\n{human}" if places else human)]
        if count % 8 == 7:  # a conversation, whose image stands in its first turn
            turns += [Turn("gpt", "A red car."), Turn("human", question)]
        requests.append(Request(turns, images, clips))
    return requests


def _picture(rng: np.random.Generator, wide: bool = False) -> Image.Image:
    width, height = (int(rng.integers(200, 340)), int(rng.integers(20, 60))) if wide else rng.integers(30, 200, 2)
    coarse = rng.integers(0, 256, (int(height) // 8 + 1, int(width) // 8 + 1, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((int(width), int(height)), Image.Resampling.NEAREST)


def _clip(rng: np.random.Generator, frames: int) -> list[Image.Image]:
    size = tuple(map(int, rng.integers(30, 120, 2)))
    return [_picture(rng).resize(size) for _ in range(frames)]
