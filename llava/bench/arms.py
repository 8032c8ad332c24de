"""The four arms on one set of random weights, at the real sizes or less: what measurements of speed work on."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch.nn import init
from transformers import AutoModelForImageTextToText, Qwen2Config, Qwen2Tokenizer, SiglipVisionConfig

from llava.anyres import ImageLayout, image_layout
from llava.constants import IGNORE_INDEX
from llava.data.collator import Collator
from llava.data.image_processor import LlavaOVManagerImageProcessor
from llava.data.processor import LlavaOVManagerProcessor
from llava.demo.tokenizer import train_tokenizer
from llava.engine.engine import Engine
from llava.fusion.none import NoFusion
from llava.mllm import LlavaOVManagerConfig
from llava.mllm.attention import SDPA_BY_SAMPLE
from llava.mllm.modeling import LlavaOVManagerForConditionalGeneration
from llava.mllm.questions import turn_token_ids
from llava.paper import TABLE_IV
from llava.train.mllm.recompute_compile import checkpoint
from llava.train.recipe.dotted import read_yaml
from llava.train.recipe.load import load_recipe
from llava.train.recipe.schema import named_components

RECIPE, SIZES = "scripts/train/recipes/mllm/stage2.yaml", "scripts/train/recipes/model_0_5b.yaml"
ARMS = tuple(TABLE_IV.rows)
PROMPT_TOKENS, ANSWER_TOKENS = 40, 20
TINY = {
    "vision": {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "image_size": 56,
        "patch_size": 14,
    },
    "text": {
        "vocab_size": 500,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
    },
}


def our_loss(model: LlavaOVManagerForConditionalGeneration, batch: dict) -> torch.Tensor:
    """As the trainer computes it."""
    return model(**batch, skip_logits=True, use_cache=False).loss


@dataclass(frozen=True)
class Side:
    """One way to compute a step.

    loss: of a model and a batch. packing: of the batch's samples, into one row.
    """

    name: str
    arm: str
    loss: Callable[[LlavaOVManagerForConditionalGeneration, dict], torch.Tensor] = our_loss
    attention: str = "sdpa"
    packing: bool = False
    checkpointed: bool = True


def whole_layers(tiny: bool) -> tuple[int, int]:
    """Layers of the tower, as far as it is used, and of the language model, where nothing is cut."""
    sizes = TINY if tiny else read_yaml(SIZES)
    unused = 0 if tiny else load_recipe(RECIPE, ARMS[0]).model.vision_layers_dropped
    return sizes["vision"]["num_hidden_layers"] - unused, sizes["text"]["num_hidden_layers"]


def arm_config(arm: str, vision_layers: int | None, text_layers: int | None, tiny: bool) -> LlavaOVManagerConfig:
    """The model of an arm as stage 2 trains it, without noise; None for all layers."""
    recipe, sizes, whole = load_recipe(RECIPE, arm), TINY if tiny else read_yaml(SIZES), whole_layers(tiny)
    vision = SiglipVisionConfig(**sizes["vision"] | {"num_hidden_layers": vision_layers or whole[0]})
    text = Qwen2Config(**sizes["text"] | {"num_hidden_layers": text_layers or whole[1]})
    fusion: Any = recipe.fusion
    return LlavaOVManagerConfig(
        vision_config=vision,
        text_config=text,
        tiling=recipe.tiling.config(vision.image_size),
        fusion=replace(fusion, jitter="none") if has_managers(arm) else fusion,
        image_token_id=text.vocab_size - 1,
        video_token_id=text.vocab_size - 2,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )


def has_managers(arm: str) -> bool:
    """Whether the arm has managers."""
    return "manager" in arm


def arm_layout(config: LlavaOVManagerConfig, size: tuple[int, int]) -> ImageLayout:
    """How an image of (width, height) pixels is tiled, alone in its sample."""
    tile, side = config.vision_config.image_size, config.patches_per_side
    return image_layout(*size, config.tiling, tile=tile, side=side, several_images=False)


class ArmModel:
    """One model whose arm can be changed: the arms share their weights, tiling and managers come and go."""

    def __init__(self, device: str, dtype: str, vision_layers: int | None, text_layers: int | None, tiny: bool):
        self.configs = {arm: arm_config(arm, vision_layers, text_layers, tiny) for arm in ARMS}
        torch.manual_seed(0)
        with torch.device(device):
            self.model = AutoModelForImageTextToText.from_config(
                arm_config("grid_manager", vision_layers, text_layers, tiny),
                dtype=getattr(torch, dtype),
                attn_implementation="sdpa",
            )
        self.managers, self.manager_config = self.model.model.fusion, self.model.config.fusion
        for manager in self.managers.managers:
            init.normal_(manager.scores, std=0.02)  # at zero, the maps would have no gradient
        self.model.train()

    @cached_property
    def tokenizer(self) -> Qwen2Tokenizer:
        """The demo's."""
        return train_tokenizer()

    def use(self, side: Side) -> None:
        """Makes the model that of the side's arm, with its attention and checkpointing."""
        config = self.configs[side.arm]
        self.model.config.tiling, self.model.config.fusion = config.tiling, config.fusion
        self.model.model.fusion = (
            self.managers if has_managers(side.arm) else NoFusion(config.fusion, self.model.config.sizes)
        )
        self.model.set_attn_implementation(side.attention)
        if side.packing and side.attention == "sdpa":
            self.model.model.language_model.set_attn_implementation(SDPA_BY_SAMPLE)
        self.model.activation_checkpointing_disable()
        checkpoint(self.model, named_components(side.checkpointed))

    def batch(self, sizes: list[tuple[int, int]], packing: bool = False) -> dict[str, Any]:
        """One sample for each image of (width, height) pixels, as the arm in use tiles it; the same at every call."""
        generator = torch.Generator().manual_seed(1)
        batch = Collator(0, packing)([self._sample(size, generator) for size in sizes])
        return send_to_device(batch, self.model.device)

    def engine(self, arm: str) -> Engine:
        """An engine of the arm with the demo's tokenizer, whose answers never end by themselves."""
        config, tokenizer = self.model.config, self.tokenizer
        vision = config.vision_config
        pictures = LlavaOVManagerImageProcessor(vision.image_size, vision.patch_size, self.configs[arm].tiling)
        processor = LlavaOVManagerProcessor(pictures, tokenizer)
        config.image_token_id, config.video_token_id = processor.image_token_id, processor.video_token_id
        for name, token_id in turn_token_ids(tokenizer).items():
            setattr(config, name, token_id)
        engine = Engine(self.model, processor)
        engine.model.generation_config.eos_token_id = None
        return engine

    def _sample(self, size: tuple[int, int], generator: torch.Generator) -> dict[str, Any]:
        config = self.model.config
        layout = arm_layout(config, size)
        tile, special = config.vision_config.image_size, {config.image_token_id, config.video_token_id}
        words = [token for token in range(config.text_config.vocab_size) if token not in special]
        drawn = torch.randint(len(words), (PROMPT_TOKENS + ANSWER_TOKENS,), generator=generator).tolist()
        ids = [config.image_token_id] * layout.num_tokens + [words[place] for place in drawn]
        return {
            "input_ids": ids,
            "labels": [IGNORE_INDEX] * (len(ids) - ANSWER_TOKENS) + ids[-ANSWER_TOKENS:],
            "num_images": 1,
            "num_videos": 0,
            "pixel_values": torch.randint(
                256, (layout.num_crops, 3, tile, tile), generator=generator, dtype=torch.uint8
            ),
            "image_sizes": torch.tensor([size[::-1]]),
            "image_spans": [(0, layout.num_tokens)],
        }
