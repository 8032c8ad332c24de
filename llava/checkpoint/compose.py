"""A vision tower and a language model as their publishers save them, joined to one model.

The composition is written once: stage 1 loads it (llava/train/mllm/build.py), `llava convert import` writes it down.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llava.checkpoint.folder import IMAGE_PROCESSOR_CONFIG, PROCESSOR_CONFIG, read_json
from llava.checkpoint.match import Part, Rules, check_tied_head, match_keys, read_matched
from llava.data.image_processor import LlavaOVManagerImageProcessor
from llava.data.processor import LlavaOVManagerProcessor
from llava.mllm.configuration import LlavaOVManagerConfig
from llava.mllm.parts import FUSION, HEAD, NEWLINE, POST_LAYERNORM, PROJECTOR

TOWER_RULES = Rules(
    renames=((r"(?:vision_model\.)?((?:embeddings|encoder|post_layernorm)\..+)", r"model.vision_tower.\1"),),
    ignored=(
        (r"(?:vision_model\.)?head\..+", "pooling head"),
        (r"(?:vision_model\.)?embeddings\.position_ids", "position buffer"),
        (r"text_model\..+|logit_scale|logit_bias", "text tower"),
    ),
)
LANGUAGE_MODEL_RULES = Rules(
    renames=(
        (r"(?:model\.)?((?:layers|embed_tokens|norm)\..+)", r"model.language_model.\1"),
        (r"lm_head\.weight", r"lm_head.weight"),
    ),
    ignored=((r".+\.rotary_emb\.inv_freq", "rotary buffer"),),
)


def tower_part(folder: Path) -> Part:
    """SigLIP's weights, of the whole model or of its vision tower alone."""
    return Part.open(folder, TOWER_RULES)


def language_model_part(folder: Path) -> Part:
    """Qwen2's weights."""
    return Part.open(folder, LANGUAGE_MODEL_RULES)


def expected_shapes(model: PreTrainedModel) -> dict[str, torch.Size]:
    """{name: shape} of what a checkpoint of the model holds: a tied head is not saved."""
    tied = model.config.tie_word_embeddings
    return {name: tensor.shape for name, tensor in model.state_dict().items() if not (tied and name == HEAD)}


def load_parts(model: PreTrainedModel, tower_folder: Path, language_model_folder: Path) -> None:
    """Loads both into a model whose projector, newline and fusion keep their values; in the model's dtype.

    Args:
        model: Of this class, not on the meta device.
        tower_folder: SigLIP's, with its unused layers or without.
        language_model_folder: Qwen2's.

    Raises:
        LlavaError: A weight is missing, unknown or of another shape.
    """
    parts = (tower_part(tower_folder), language_model_part(language_model_folder))
    match = match_keys(parts, expected_shapes(model), (POST_LAYERNORM, PROJECTOR, NEWLINE, FUSION))
    name = f"{tower_folder} + {language_model_folder}"
    match.check(name)
    check_tied_head(match, parts, name)
    weights = model.state_dict()
    with torch.no_grad():
        for ours, tensor in read_matched(match, parts):
            weights[ours].copy_(tensor)
    model.tie_weights()


def make_processor(
    config: LlavaOVManagerConfig, tokenizer: PreTrainedTokenizerBase, statistics: dict
) -> LlavaOVManagerProcessor:
    """The processor of a model.

    Args:
        config: Of the model: tiling, and sizes of crops and patches.
        tokenizer: Its own.
        statistics: `image_mean` and `image_std` per channel; SigLIP's 0.5 where they are not given.
    """
    image_processor = LlavaOVManagerImageProcessor(
        size=config.vision_config.image_size,
        patch_size=config.vision_config.patch_size,
        tiling=config.tiling,
        **statistics,
    )
    return LlavaOVManagerProcessor(image_processor=image_processor, tokenizer=tokenizer)


def pixel_statistics(folders: Sequence[Path]) -> dict:
    """Mean and deviation per channel from the first folder that states them; {} where none does."""
    for folder in folders:
        for name, section in ((IMAGE_PROCESSOR_CONFIG, None), (PROCESSOR_CONFIG, "image_processor")):
            if (folder / name).is_file():
                settings = read_json(folder / name)
                settings = settings.get(section, {}) if section else settings
                if "image_mean" in settings and "image_std" in settings:
                    return {key: settings[key] for key in ("image_mean", "image_std")}
    return {}
