"""What bench_train.py measures: the four arms on one set of weights, and the naive ways to do what ours does."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from accelerate.utils import send_to_device
from torch.nn import init
from transformers import AutoModelForImageTextToText, Qwen2Config, SiglipVisionConfig

from llava.anyres import image_layout
from llava.constants import IGNORE_INDEX
from llava.data.collator import Collator
from llava.data.images import normalize
from llava.engine.checks import DTYPE_NAMES
from llava.fusion.configs.none import NoneConfig
from llava.fusion.none import NoFusion
from llava.mllm import LlavaOVManagerConfig
from llava.mllm.attention import SDPA_BY_SAMPLE
from llava.mllm.features import VisualFeatures
from llava.mllm.modeling import LlavaOVManagerForConditionalGeneration
from llava.mllm.packing import pack
from llava.mllm.visual_input import image_input
from llava.train.mllm.recompute_compile import checkpoint
from llava.train.recipe.dotted import read_yaml
from llava.train.recipe.load import load_recipe
from llava.train.recipe.schema import named_components

RECIPE, SIZES = "scripts/train/recipes/mllm/stage2.yaml", "scripts/train/recipes/model_0_5b.yaml"
ARMS = ("baseline", "manager", "grid", "grid_manager")
NAIVE = ("logits", "eager", "maps", "kept", "torch", "float")
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


class Bench:
    """One model whose arm can be changed: the arms share their weights, tiling and managers come and go."""

    def __init__(self, device: str, dtype: str, vision_layers: int | None, text_layers: int | None, tiny: bool):
        recipes = {arm: load_recipe(RECIPE, arm) for arm in ARMS}
        sizes = TINY if tiny else read_yaml(SIZES)
        unused = 0 if tiny else recipes["baseline"].model.vision_layers_dropped
        vision_layers = vision_layers or sizes["vision"]["num_hidden_layers"] - unused
        text_layers = text_layers or sizes["text"]["num_hidden_layers"]
        vision = SiglipVisionConfig(**sizes["vision"] | {"num_hidden_layers": vision_layers})
        text = Qwen2Config(**sizes["text"] | {"num_hidden_layers": text_layers})
        self.tilings = {arm: recipe.tiling.config(vision.image_size) for arm, recipe in recipes.items()}
        config = LlavaOVManagerConfig(
            vision_config=vision,
            text_config=text,
            fusion=replace(recipes["grid_manager"].fusion, jitter="none"),
            image_token_id=text.vocab_size - 1,
            video_token_id=text.vocab_size - 2,
            image_mean=[0.5] * 3,
            image_std=[0.5] * 3,
        )
        torch.manual_seed(0)
        with torch.device(device):
            self.model = AutoModelForImageTextToText.from_config(
                config, dtype=getattr(torch, dtype), attn_implementation="sdpa"
            )
        self.managers, self.manager_config = self.model.model.fusion, config.fusion
        for manager in self.managers.managers:
            init.normal_(manager.scores, std=0.02)  # at zero, the maps would have no gradient
        self.model.train()

    def use(self, side: "Side") -> None:
        """Makes the model that of the side's arm, with its attention and checkpointing."""
        managed = "manager" in side.arm
        self.model.config.tiling = self.tilings[side.arm]
        self.model.config.fusion = self.manager_config if managed else NoneConfig()
        self.model.model.fusion = self.managers if managed else NoFusion(NoneConfig(), self.model.config.sizes)
        self.model.set_attn_implementation(side.attention)
        if side.packing and side.attention == "sdpa":
            self.model.model.language_model.set_attn_implementation(SDPA_BY_SAMPLE)
        self.model.activation_checkpointing_disable()
        components = named_components(side.checkpointed)
        checkpoint(self.model, components, compiled=components if side.by_torch else ())

    def batch(self, sizes: list[tuple[int, int]], packing: bool = False) -> dict[str, torch.Tensor]:
        """One sample for each image of (width, height) pixels, as the arm in use tiles it; the same at every call."""
        generator = torch.Generator().manual_seed(1)
        batch = Collator(0, packing)([self._sample(size, generator) for size in sizes])
        return send_to_device(batch, self.model.device)

    def _sample(self, size: tuple[int, int], generator: torch.Generator) -> dict:
        config = self.model.config
        tile, vocabulary = config.vision_config.image_size, config.text_config.vocab_size - 2
        layout = image_layout(*size, config.tiling, tile=tile, side=config.patches_per_side, several_images=False)
        text = torch.randint(vocabulary, (PROMPT_TOKENS + ANSWER_TOKENS,), generator=generator).tolist()
        ids = [config.image_token_id] * layout.num_tokens + text
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


def our_loss(model: LlavaOVManagerForConditionalGeneration, batch: dict) -> torch.Tensor:
    """As the trainer computes it."""
    return model(**batch, skip_logits=True, use_cache=False).loss


def loss_of_all_logits(model: LlavaOVManagerForConditionalGeneration, batch: dict) -> torch.Tensor:
    """Logits at every position, in float32."""
    return model(**batch, use_cache=False).loss


def loss_of_float_pixels(model: LlavaOVManagerForConditionalGeneration, batch: dict) -> torch.Tensor:
    """The crops normalised before they come to the device, as float32 and four times the bytes."""
    config, pixels = model.config, batch["pixel_values"]
    normalised = normalize(pixels.cpu().numpy(), config.image_mean, config.image_std)
    return our_loss(model, {**batch, "pixel_values": torch.from_numpy(normalised).to(pixels.device)})


def loss_map_by_map(model: LlavaOVManagerForConditionalGeneration, batch: dict) -> torch.Tensor:
    """The tower's states all kept and stacked; every image's every map projected, packed and summed by itself."""
    batch = dict(batch)
    given = image_input(model.config, batch.pop("pixel_values"), batch.pop("image_sizes"), None)
    inner, merge = model.model, model.config.tiling.merge
    last = model.config.vision_config.num_hidden_layers
    states = torch.stack(inner.vision_tower(given.crops.to(model.dtype), list(range(last + 1))))
    newline, managers = inner.image_newline(), inner.fusion
    features, deltas, end = [], [[] for _ in managers.managers], 0
    for layout in given.layouts:
        begin, end = end, end + layout.num_crops
        features.append(pack(inner.multi_modal_projector(states[last, begin:end]), newline, layout, merge))
        maps = []
        for number, layer in enumerate(model.config.fusion.vision_layers):
            projected = inner.multi_modal_projector(states[layer, begin:end]) + managers.layer_embedding[number]
            maps.append(pack(projected, newline, layout, merge))
        for manager, delta in zip(managers.managers, deltas):
            delta.append(sum(scores * map_VD for scores, map_VD in zip(manager.scores, maps)))
    visual = VisualFeatures(pooler_output=features, deepstack_features=deltas)
    return our_loss(model, batch | {"mm_encoder_outputs": {"image": visual}})


@dataclass(frozen=True)
class Side:
    """One way to compute a step.

    loss: of a model and a batch. packing: of the batch's samples, into one row. by_torch: layers are computed again by
    torch's own function.
    """

    name: str
    arm: str
    loss: Callable = our_loss
    attention: str = "sdpa"
    packing: bool = False
    checkpointed: bool = True
    by_torch: bool = False


def arm_sides(arms: list[str]) -> list[Side]:
    return [Side(arm, arm) for arm in arms]


def naive_sides(arm: str, ways: list[str]) -> list[Side]:
    """What our savings are compared with. ways: of NAIVE; `maps` is left out where the arm has no managers."""
    sides = {
        "logits": Side("logits at every position", arm, loss=loss_of_all_logits),
        "eager": Side("eager attention", arm, attention="eager"),
        "maps": Side("managers map by map", arm, loss=loss_map_by_map),
        "kept": Side("nothing checkpointed", arm, checkpointed=False),
        "torch": Side("checkpointed by torch", arm, by_torch=True),
        "float": Side("pixels as float32", arm, loss=loss_of_float_pixels),
    }
    return [sides[way] for way in ways if way != "maps" or "manager" in arm]


def packed_side(arm: str) -> Side:
    """What is compared with the arm where samples of unequal lengths come together."""
    return Side("samples packed", arm, packing=True)


def model_parser(description: str) -> argparse.ArgumentParser:
    """A parser of the options that say which model is measured, and where."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    on_gpu = torch.cuda.is_available()
    parser.add_argument("--device", default="cuda" if on_gpu else "cpu")
    parser.add_argument("--dtype", choices=DTYPE_NAMES, default="bfloat16" if on_gpu else "float32")
    parser.add_argument("--layers", type=int, help="of the tower and of the language model each; default 26 and 24")
    parser.add_argument("--vision_layers", type=int, help="instead of --layers, for the tower")
    parser.add_argument("--text_layers", type=int, help="instead of --layers, for the language model")
    return parser
