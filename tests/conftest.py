"""Tiny towers, a tokenizer trained on the spot, and checkpoints made of them: everything a test needs, offline."""

import os
import signal
import sys
from copy import deepcopy
from pathlib import Path

# The tests are those of a CPU, also where GPUs are.
os.environ.update(CUDA_VISIBLE_DEVICES="", DS_ACCELERATOR="cpu")
# The scripts that tests start find this environment's python, torchrun and llava, activated or not.
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # else a pool of processes stays
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that spin starve a machine with few cores
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # in the background; what tests start would ignore Ctrl-C, too
    signal.signal(signal.SIGINT, signal.default_int_handler)
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the workers are the threads

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from tokenizers.decoders import ByteLevel
from transformers import PreTrainedTokenizerFast, Qwen2Config, SiglipVisionConfig

from llava.anyres import TilingConfig
from llava.data.conversation import add_visual_tokens
from llava.data.image_processor import LlavaOVManagerImageProcessor
from llava.data.processor import LlavaOVManagerProcessor
from llava.engine.engine import Engine
from llava.fusion.configs.manager import ManagerConfig
from llava.fusion.managers import StaticManager
from llava.mllm import LlavaOVManagerConfig, LlavaOVManagerForConditionalGeneration
from llava.mllm.questions import turn_token_ids
from tests import leftovers
from tests.clips import write_clip
from tests.forked_python import ForkedPython
from tests.order import slow_files_first

TILE, PATCH = 56, 14
QUERIES, SCOPES = ("self", "last", "average", "cross"), ("all", "main", "grid")  # of managers
CORPUS = ["You are a helpful assistant.", "system user assistant", "What is in the picture? A red car.", "0123456789"]
GRID = TilingConfig.from_llava("anyres_max_9", "spatial_unpad", "(1x1),...,(6x6)", TILE)


def pytest_addoption(parser):
    parser.addoption("--golden-dir", type=Path, help="folder in the layout of tests/golden/data or .../two_tower")
    parser.addoption(
        "--transformers-tests",
        default=os.environ.get("TRANSFORMERS_TESTS"),
        help="source checkout of transformers, whose generation tests are then run on our model",
    )
    parser.addoption("--mixed-steps", type=int, default=120, help="random mixed micro-steps of each strategy")
    parser.addoption("--launches", type=int, default=0, help="launches that must end well, of each strategy")
    parser.addoption("--data-seed", type=int, default=0, help="of the random data that ranks are compared on")


def pytest_collection_modifyitems(items):
    items[:] = slow_files_first(items, int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1)))


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    """Tiny tensors gain nothing from more, and lose much when the machine is busy."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _adopt_orphans():
    leftovers.adopt()


@pytest.fixture(scope="module", autouse=True)
def _no_process_is_left(_adopt_orphans):
    """Of the module's tests and fixtures."""
    yield
    assert leftovers.end_leftovers() == []


@pytest.fixture(scope="session")
def forked_python():
    """A python for what trains and evaluates in processes of its own."""
    with ForkedPython() as python:
        yield python


@pytest.fixture(scope="session")
def tiny_tokenizer():
    """A byte-level BPE of some 300 tokens with Qwen2's special tokens, <image> and <video>."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(CORPUS, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    fast.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    add_visual_tokens(fast, vocab_size=320)
    return fast


@pytest.fixture(scope="session")
def make_processor(tiny_tokenizer):
    """A function: tiling to processor."""

    def make(tiling: TilingConfig = GRID) -> LlavaOVManagerProcessor:
        return LlavaOVManagerProcessor(LlavaOVManagerImageProcessor(TILE, PATCH, tiling), tiny_tokenizer)

    return make


@pytest.fixture(scope="session")
def make_config(tiny_tokenizer):
    """A function: tiling and fusion ("paper", "released", a FusionConfig or None) to a tiny configuration.

    tower, language_model: in place of SigLIP and Qwen2, a configuration and a class of one.
    """

    def make(
        tiling: TilingConfig = GRID, fusion="paper", tower=None, language_model=Qwen2Config, **text
    ) -> LlavaOVManagerConfig:
        vision_layers, text_layers = 4, 6
        if isinstance(fusion, str):
            fusion = ManagerConfig(layer_set=fusion, interval=2)
        return LlavaOVManagerConfig(
            vision_config=deepcopy(tower)
            or SiglipVisionConfig(
                hidden_size=32,
                intermediate_size=48,
                num_hidden_layers=vision_layers,
                num_attention_heads=2,
                image_size=TILE,
                patch_size=PATCH,
                vision_use_head=False,
            ),
            text_config=language_model(
                **{
                    "vocab_size": 320,
                    "hidden_size": 24,
                    "intermediate_size": 48,
                    "num_hidden_layers": text_layers,
                    "num_attention_heads": 4,
                    "num_key_value_heads": 2,
                    "max_position_embeddings": 2048,
                    "tie_word_embeddings": True,
                    "pad_token_id": tiny_tokenizer.pad_token_id,
                    "eos_token_id": tiny_tokenizer.eos_token_id,
                }
                | text
            ),
            fusion=fusion,
            tiling=tiling,
            image_mean=[0.5] * 3,
            image_std=[0.5] * 3,
            image_token_id=tiny_tokenizer.convert_tokens_to_ids("<image>"),
            video_token_id=tiny_tokenizer.convert_tokens_to_ids("<video>"),
            **turn_token_ids(tiny_tokenizer),
        )

    return make


@pytest.fixture(scope="session")
def make_model(make_config):
    """A function: as make_config, to a model with seeded random weights (managers too, unless zero_managers)."""

    def make(tiling: TilingConfig = GRID, fusion="paper", zero_managers: bool = False, **text):
        torch.manual_seed(0)
        model = LlavaOVManagerForConditionalGeneration(make_config(tiling, fusion, **text)).eval()
        for module in model.model.fusion.modules():
            if isinstance(module, StaticManager) and not zero_managers:
                torch.nn.init.normal_(module.scores, std=0.3)
        return model

    return make


@pytest.fixture(scope="session")
def tiny_model(make_model):
    """A grid + manager model whose random weights are so large that it answers other prompts otherwise.

    With smaller ones it repeats a token, and maybe one that no text shows.
    """
    return make_model(initializer_range=0.2)


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory, tiny_model, make_processor):
    """tiny_model as a saved checkpoint, with processor and tokenizer."""
    folder = tmp_path_factory.mktemp("tiny_model")
    tiny_model.save_pretrained(folder)
    make_processor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def engine(tiny_model_dir):
    return Engine.from_pretrained(tiny_model_dir, device="cpu")


@pytest.fixture(scope="session")
def make_image():
    """A function: (width, height, seed) to an RGB noise image."""

    def make(width: int = 100, height: int = 70, seed: int = 0) -> Image.Image:
        pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
        return Image.fromarray(pixels)

    return make


@pytest.fixture
def make_clip(tmp_path):
    """A function: as write_clip, with a name in place of the path."""

    def make(frames=40, fps: int = 8, size: tuple[int, int] = (64, 48), name: str = "clip.mp4", **options) -> Path:
        return write_clip(tmp_path / name, frames, fps, size, **options)

    return make
