"""The model and the processor that a stage trains, from the folders that its recipe names.

Every rank loads the whole model in float32 on the CPU, before DeepSpeed is configured; DeepSpeed or DDP then moves,
partitions and broadcasts it. That needs 4 bytes of host memory per parameter and rank (3.6 GB at 0.5B) and keeps
initialisation out of ZeRO-3's hands: new managers are zero whatever the strategy.
"""

import dataclasses
import json
from pathlib import Path

import torch
from transformers import (
    AutoModelForImageTextToText,
    AutoTokenizer,
    GenerationConfig,
    Qwen2Config,
    Qwen2ForCausalLM,
    SiglipVisionConfig,
    SiglipVisionModel,
)
from transformers.utils import is_flash_attn_2_available

from llava.data.processor import LlavaOVManagerImageProcessor, LlavaOVManagerProcessor, add_visual_tokens
from llava.errors import LlavaError
from llava.managers import ManagerConfig
from llava.mllm import LlavaOVManagerConfig, LlavaOVManagerForConditionalGeneration
from llava.train.checks import tiling_config
from llava.train.keys import read_yaml
from llava.train.recipes import Recipe


def model_config(recipe: Recipe, visual_tokens: dict[str, int] | None = None) -> LlavaOVManagerConfig:
    """The configuration of the model to train: architecture from the start folders, managers and tiling as asked.

    Raises LlavaError when the start's managers are not those of the recipe, or when layers or pinpoints do not fit.
    """
    if recipe.model.start_from is not None:
        start = LlavaOVManagerConfig.from_pretrained(recipe.model.start_from)
        managers = manager_config(recipe, start.vision_config, start.text_config)
        check_managers_fit(recipe, start.managers, managers)
        visual_tokens = {"image_token_id": start.image_token_id, "video_token_id": start.video_token_id}
        return _assembled(recipe, start.vision_config, start.text_config, managers, visual_tokens)
    vision = SiglipVisionConfig.from_pretrained(recipe.model.vision_tower)
    text = Qwen2Config.from_pretrained(recipe.model.language_model)
    vision.num_hidden_layers = _used_layers(recipe, vision.num_hidden_layers)
    return _assembled(recipe, vision, text, manager_config(recipe, vision, text), visual_tokens)


def config_from_sizes(recipe: Recipe) -> LlavaOVManagerConfig:
    """The configuration that `model.sizes` describes, for a dry run without any model folder."""
    sizes = read_yaml(recipe.model.sizes)
    vision, text = SiglipVisionConfig(**sizes["vision"]), Qwen2Config(**sizes["text"])
    vision.num_hidden_layers = _used_layers(recipe, vision.num_hidden_layers)
    return _assembled(recipe, vision, text, manager_config(recipe, vision, text))


def _used_layers(recipe: Recipe, built: int) -> int:
    used = built - recipe.model.vision_layers_dropped
    if not 0 < used <= built:
        raise LlavaError(
            f"model.vision_layers_dropped is {recipe.model.vision_layers_dropped}, the tower has {built} layers"
        )
    return used


def _assembled(recipe, vision, text, managers, visual_tokens=None) -> LlavaOVManagerConfig:
    vision.vision_use_head = False
    tiling = tiling_config(recipe, vision.image_size)
    return LlavaOVManagerConfig(
        vision_config=vision, text_config=text, managers=managers, tiling=tiling, **(visual_tokens or {})
    )


def manager_config(recipe: Recipe, vision, text) -> ManagerConfig | None:
    """The recipe's managers for a tower and a language model of these configurations."""
    asked = recipe.managers
    if asked.layer_set == "none":
        return None
    preset = ManagerConfig.paper if asked.layer_set == "paper" else ManagerConfig.released
    config = preset(vision.num_hidden_layers, text.num_hidden_layers, interval=asked.interval, scope=asked.scope)
    changes = {
        name: tuple(layers) for name in ("vision_layers", "injection_layers") if (layers := getattr(asked, name))
    }
    if asked.jitter != "as_layer_set":
        changes["jitter"] = asked.jitter
    return dataclasses.replace(config, **changes).resolved(vision.num_hidden_layers, text.num_hidden_layers)


def check_managers_fit(recipe: Recipe, start: ManagerConfig | None, asked: ManagerConfig | None) -> None:
    """Raises LlavaError unless the start has no managers or exactly the layers of those that are asked for."""
    if start is None:
        return
    folder = recipe.model.start_from
    if asked is None:
        raise LlavaError(f"model.start_from {folder} has managers, arm {recipe.arm} has none")
    for field in ("vision_layers", "injection_layers", "first_omits_last_map"):
        found, wanted = getattr(start, field), getattr(asked, field)
        if found != wanted:
            raise LlavaError(f"model.start_from {folder} has managers of {field} {found}, the recipe asks for {wanted}")


def trains_in_bf16(recipe: Recipe) -> bool:
    """Whether the forward pass runs in bfloat16: as the recipe says, or on every GPU that has it."""
    if recipe.run.precision != "auto":
        return recipe.run.precision == "bf16"
    return torch.cuda.is_available() and torch.cuda.is_bf16_supported()


def attention_implementation(recipe: Recipe) -> str:
    """flash_attention_2 when it is installed and bfloat16 runs on a GPU, else sdpa, unless the recipe names one."""
    if recipe.model.attention != "auto":
        return recipe.model.attention
    usable = torch.cuda.is_available() and trains_in_bf16(recipe) and is_flash_attn_2_available()
    return "flash_attention_2" if usable else "sdpa"


def build_on_meta(config: LlavaOVManagerConfig) -> LlavaOVManagerForConditionalGeneration:
    """The model without weights, for counting."""
    with torch.device("meta"):
        return LlavaOVManagerForConditionalGeneration(config)


def build(recipe: Recipe) -> tuple[LlavaOVManagerForConditionalGeneration, LlavaOVManagerProcessor]:
    """The model in float32 on the CPU, and its processor. New parts are drawn from torch's global generator."""
    if recipe.model.start_from is not None:
        return _continue(recipe)
    return _compose(recipe)


def _continue(recipe: Recipe):
    """From the checkpoint of the stage before; only managers may be new."""
    folder = recipe.model.start_from
    model, loading = LlavaOVManagerForConditionalGeneration.from_pretrained(
        folder,
        config=model_config(recipe),
        dtype=torch.float32,
        attn_implementation=attention_implementation(recipe),
        output_loading_info=True,
    )
    had_managers = LlavaOVManagerConfig.from_pretrained(folder).managers is not None
    missing = [key for key in loading["missing_keys"] if had_managers or not key.startswith("model.managers.")]
    unexpected, mismatched = loading["unexpected_keys"], loading["mismatched_keys"]
    if missing or unexpected or mismatched:
        raise LlavaError(
            f"model.start_from {folder}: its weights do not fit; {len(missing)} missing, {len(unexpected)} unexpected, "
            f"{len(mismatched)} of another shape"
        )
    processor = LlavaOVManagerProcessor.from_pretrained(folder)
    processor.image_processor.tiling = model.config.tiling
    return model, processor


def _compose(recipe: Recipe):
    """From a vision tower and a language model; projector, managers and newline are new."""
    tokenizer = AutoTokenizer.from_pretrained(recipe.model.language_model)
    vocabulary = Qwen2Config.from_pretrained(recipe.model.language_model).vocab_size
    config = model_config(recipe, add_visual_tokens(tokenizer, vocabulary))
    model = AutoModelForImageTextToText.from_config(
        config, dtype=torch.float32, attn_implementation=attention_implementation(recipe)
    )
    tower = SiglipVisionModel.from_pretrained(recipe.model.vision_tower, dtype=torch.float32)
    _load_tower(model.model.vision_tower, tower.state_dict(), recipe.model.vision_tower)
    language_model = Qwen2ForCausalLM.from_pretrained(recipe.model.language_model, dtype=torch.float32)
    model.model.language_model.load_state_dict(language_model.model.state_dict())
    model.lm_head.load_state_dict(language_model.lm_head.state_dict())
    model.tie_weights()
    # The language model's own generation settings (Qwen2-Instruct: sampling, repetition_penalty 1.1) are not ours.
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    image_processor = LlavaOVManagerImageProcessor(
        size=config.vision_config.image_size,
        patch_size=config.vision_config.patch_size,
        tiling=config.tiling,
        **_pixel_statistics(recipe.model.vision_tower),
    )
    return model, LlavaOVManagerProcessor(image_processor=image_processor, tokenizer=tokenizer)


def _load_tower(tower, weights: dict, folder: str) -> None:
    """Loads what the tower has; the layers dropped from its end and the pooling head are left over."""
    missing, left_over = tower.load_state_dict(weights, strict=False)
    used = len(tower.encoder.layers)
    odd = [
        key
        for key in left_over
        if not key.startswith("head.") and not (key.startswith("encoder.layers.") and int(key.split(".")[2]) >= used)
    ]
    if missing or odd:
        raise LlavaError(
            f"model.vision_tower {folder}: its weights do not fit; {len(missing)} missing, {len(odd)} unknown"
        )


def _pixel_statistics(folder: str) -> dict:
    """Mean and deviation per channel that the tower was trained with; SigLIP's 0.5 when the folder does not say."""
    path = Path(folder) / "preprocessor_config.json"
    if not path.is_file():
        return {}
    statistics = json.loads(path.read_text())
    return {key: statistics[key] for key in ("image_mean", "image_std") if key in statistics}
