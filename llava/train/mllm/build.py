"""The model and the processor that a stage trains, from the folders that its recipe names.

The first rank loads the whole model in float32 on the CPU, 4 bytes of its host's memory per parameter, and draws what
is new: new parts begin alike whatever the strategy. The others build it without weights and are sent them once the
ranks are connected, see llava/train/ranks/shared_weights.py.
"""

from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForImageTextToText, AutoTokenizer, GenerationConfig, PreTrainedConfig

from llava.checkpoint.compose import load_parts, make_processor, part_config, pixel_statistics
from llava.checkpoint.folder import GENERATION_CONFIG
from llava.checkpoint.loading import load_model
from llava.data.conversation import add_visual_tokens
from llava.data.processor import LlavaOVManagerProcessor
from llava.errors import LlavaError
from llava.fusion.config import FusionConfig, Sizes
from llava.mllm import LlavaOVManagerConfig, LlavaOVManagerForConditionalGeneration
from llava.mllm.attention import SDPA_BY_SAMPLE
from llava.mllm.parts import FUSION
from llava.mllm.questions import turn_token_ids
from llava.train.loop.attention import attention_implementation, check_attention
from llava.train.loop.precision import trains_in_bf16
from llava.train.mllm.lora import attach_adapters
from llava.train.recipe.dotted import read_yaml
from llava.train.recipe.schema import Recipe

TOKEN_IDS = ("image_token_id", "video_token_id", "turn_start_token_id", "turn_end_token_id", "newline_token_id")


def model_config(recipe: Recipe, token_ids: dict[str, int] | None = None) -> LlavaOVManagerConfig:
    """The configuration of the model to train: architecture from the start folders, the rest from the recipe.

    token_ids: of placeholders and turns, by the names of LlavaOVManagerConfig; what is left out is as in the checkpoint
    to start from, or as in Qwen2's vocabulary.
    Raises LlavaError when the start's fusion is not the recipe's, or when layers or pinpoints do not fit.
    """
    if recipe.model.start_from is not None:
        start = LlavaOVManagerConfig.from_pretrained(recipe.model.start_from)
        fusion = recipe.fusion.resolved(start.vision_config.num_hidden_layers, start.text_config.num_hidden_layers)
        check_fusion_fits(recipe, start.fusion, fusion, start.sizes)
        token_ids = {name: getattr(start, name) for name in TOKEN_IDS} | (token_ids or {})
        return _assembled(recipe, start.vision_config, start.text_config, fusion, token_ids)
    vision, text = (part_config(Path(name)) for name in (recipe.model.vision_tower, recipe.model.language_model))
    vision.num_hidden_layers = _used_layers(recipe, vision.num_hidden_layers)
    return _assembled(recipe, vision, text, recipe.fusion, token_ids)


def config_from_sizes(recipe: Recipe) -> LlavaOVManagerConfig:
    """The configuration that `model.sizes` describes, for a dry run without any model folder."""
    sizes = read_yaml(recipe.model.sizes)
    vision, text = _sized(sizes["vision"], "siglip_vision_model"), _sized(sizes["text"], "qwen2")
    vision.num_hidden_layers = _used_layers(recipe, vision.num_hidden_layers)
    return _assembled(recipe, vision, text, recipe.fusion)


def _sized(fields: dict, usual: str) -> PreTrainedConfig:
    """The configuration of a part from its fields; of the usual kind where they name none."""
    return AutoConfig.for_model(**{"model_type": usual} | fields)


def _used_layers(recipe: Recipe, built: int) -> int:
    used = built - recipe.model.vision_layers_dropped
    if not 0 < used <= built:
        raise LlavaError(
            f"model.vision_layers_dropped is {recipe.model.vision_layers_dropped}, the tower has {built} layers"
        )
    return used


def _assembled(
    recipe: Recipe,
    vision: PreTrainedConfig,
    text: PreTrainedConfig,
    fusion: FusionConfig,
    token_ids: dict[str, int] | None = None,
) -> LlavaOVManagerConfig:
    tiling = recipe.tiling.config(vision.image_size)
    return LlavaOVManagerConfig(
        vision_config=vision, text_config=text, fusion=fusion, tiling=tiling, **(token_ids or {})
    )


def check_fusion_fits(recipe: Recipe, start: FusionConfig, fusion: FusionConfig, sizes: Sizes) -> None:
    """Raises LlavaError unless the start has no fusion, or the recipe's with weights of the same kind.

    Its projector must be of the recipe's widths, which follow from the fusion and from the `sizes` of both models.
    """
    folder = recipe.model.start_from
    if start.method == "none":
        widths, wanted = ((one.visual_width(sizes), one.hidden_width(sizes)) for one in (start, fusion))
        if widths != wanted:
            raise LlavaError(
                f"model.start_from {folder} has a projector of widths {widths[0]} and {widths[1]}, arm {recipe.arm} "
                f"with fusion {fusion.method} needs {wanted[0]} and {wanted[1]}"
            )
        return
    if start.method != fusion.method:
        raise LlavaError(
            f"model.start_from {folder} has the fusion method {start.method}, arm {recipe.arm} has {fusion.method}"
        )
    wanted = fusion.weights_follow()
    for field, value in start.weights_follow().items():
        if value != wanted.get(field):
            raise LlavaError(
                f"model.start_from {folder} has fusion {start.method} of {field} {value}, the recipe asks for "
                f"{wanted.get(field)}"
            )


def build_on_meta(config: LlavaOVManagerConfig, recipe: Recipe) -> LlavaOVManagerForConditionalGeneration:
    """The model with the recipe's adapters, without weights, for counting."""
    with torch.device("meta"):
        model = LlavaOVManagerForConditionalGeneration(config)
        attach_adapters(model, recipe, torch.float32)
    return model


def build(
    recipe: Recipe, with_weights: bool = True
) -> tuple[LlavaOVManagerForConditionalGeneration, LlavaOVManagerProcessor]:
    """The model in float32, and its processor.

    Args:
        recipe: checked.
        with_weights: Whether the weights are loaded, on the CPU, and new ones drawn from torch's global generator; else
            the model is on the meta device.

    Raises:
        LlavaError: What the recipe starts from does not fit, or its attention cannot run here.
    """
    check_attention(recipe)
    model, processor = (_compose if recipe.model.start_from is None else _continue)(recipe, with_weights)
    model.config.image_mean = processor.image_processor.image_mean
    model.config.image_std = processor.image_processor.image_std
    attach_adapters(model, recipe, torch.bfloat16 if trains_in_bf16(recipe) else torch.float32)
    if recipe.data.packing and attention_implementation(recipe) == "sdpa":
        model.model.language_model.set_attn_implementation(SDPA_BY_SAMPLE)
    return model, processor


def _continue(
    recipe: Recipe, with_weights: bool
) -> tuple[LlavaOVManagerForConditionalGeneration, LlavaOVManagerProcessor]:
    """From the checkpoint of the stage before, its adapters merged; its fusion alone may be new."""
    folder = recipe.model.start_from
    processor = LlavaOVManagerProcessor.from_pretrained(folder)
    has_fusion = LlavaOVManagerConfig.from_pretrained(folder).fusion.method != "none"
    config = model_config(recipe, turn_token_ids(processor.tokenizer))
    if with_weights:
        try:
            model = load_model(
                folder,
                config=config,
                dtype=torch.float32,
                attn_implementation=attention_implementation(recipe),
                may_be_new=() if has_fusion else (FUSION,),
            )
        except LlavaError as error:
            raise LlavaError(f"model.start_from {error}") from error
    else:
        model = _new_model(config, recipe, torch.device("meta"))
        if Path(folder, GENERATION_CONFIG).is_file():
            model.generation_config = GenerationConfig.from_pretrained(folder)
    processor.image_processor.tiling = model.config.tiling
    return model, processor


def _compose(
    recipe: Recipe, with_weights: bool
) -> tuple[LlavaOVManagerForConditionalGeneration, LlavaOVManagerProcessor]:
    """From a vision tower and a language model; projector, fusion and newline are new."""
    tokenizer = AutoTokenizer.from_pretrained(recipe.model.language_model)
    vocabulary = part_config(Path(recipe.model.language_model)).vocab_size
    config = model_config(recipe, add_visual_tokens(tokenizer, vocabulary) | turn_token_ids(tokenizer))
    model = _new_model(config, recipe, torch.device("cpu" if with_weights else "meta"))
    if with_weights:
        load_parts(model, Path(recipe.model.vision_tower), Path(recipe.model.language_model))
    # The language model's own generation settings (Qwen2-Instruct: sampling, repetition_penalty 1.1) are not ours.
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    return model, make_processor(config, tokenizer, pixel_statistics((Path(recipe.model.vision_tower),)))


def _new_model(
    config: LlavaOVManagerConfig, recipe: Recipe, device: torch.device
) -> LlavaOVManagerForConditionalGeneration:
    with device:
        return AutoModelForImageTextToText.from_config(
            config, dtype=torch.float32, attn_implementation=attention_implementation(recipe)
        )
