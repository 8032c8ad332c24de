"""A vision tower and a language model as their publishers save them, joined to one model.

The composition is written once: stage 1 loads it (llava/train/mllm/build.py), `llava convert import` writes it down.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import GenerationConfig, PreTrainedModel, Qwen2Config, SiglipVisionConfig

from llava.anyres import TilingConfig
from llava.convert.match import HEAD, KeyMatch, Part, Rules, check_tied_head, match_keys, read_matched
from llava.convert.source import MANAGERS, NEWLINE, POST_LAYERNORM, PROJECTOR, Source, read_config
from llava.data.image_processor import LlavaOVManagerImageProcessor
from llava.data.processor import LlavaOVManagerProcessor
from llava.train.folders.stage_folder import read_json

LAYERS_DROPPED = 1  # real SigLIP has 27 layers, of which 26 are used
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
    return Part.open(folder, TOWER_RULES)


def language_model_part(folder: Path) -> Part:
    return Part.open(folder, LANGUAGE_MODEL_RULES)


def parts_source(tower_folder: Path, language_model_folder: Path) -> Source:
    """A baseline of one square crop: projector and newline are new."""
    vision = read_config(SiglipVisionConfig, tower_folder)
    vision.num_hidden_layers -= LAYERS_DROPPED
    return Source(
        name=f"{tower_folder} + {language_model_folder}",
        kind="vision tower + language model",
        parts=(tower_part(tower_folder), language_model_part(language_model_folder)),
        vision=vision,
        text=read_config(Qwen2Config, language_model_folder),
        managers=None,
        tiling=TilingConfig(),
        folders=(language_model_folder, tower_folder),
        may_be_new=(POST_LAYERNORM, PROJECTOR, NEWLINE),
    )


def expected_shapes(model: PreTrainedModel) -> dict[str, torch.Size]:
    """{name: shape} of what a checkpoint of the model holds: a tied head is not saved."""
    tied = model.config.tie_word_embeddings
    return {name: tensor.shape for name, tensor in model.state_dict().items() if not (tied and name == HEAD)}


def load_parts(model: PreTrainedModel, tower_folder: Path, language_model_folder: Path) -> None:
    """Loads both into a model whose projector, newline and managers keep their values; in the model's dtype.

    Raises LlavaError when a weight is missing, unknown or of another shape.
    """
    parts = (tower_part(tower_folder), language_model_part(language_model_folder))
    match = match_keys(parts, expected_shapes(model), (POST_LAYERNORM, PROJECTOR, NEWLINE, MANAGERS))
    name = f"{tower_folder} + {language_model_folder}"
    match.check(name)
    check_tied_head(match, parts, name)
    weights = model.state_dict()
    with torch.no_grad():
        for ours, tensor in read_matched(match, parts):
            weights[ours].copy_(tensor)
    model.tie_weights()


def new_parameters(model: PreTrainedModel, match: KeyMatch, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The parameters that start afresh, drawn from torch's global generator as for a new model.

    model: the model on the meta device; the parts that are new become real.
    """
    tensors = {}
    for prefix in (POST_LAYERNORM, PROJECTOR, NEWLINE, MANAGERS):
        names = [name for name in match.new if name.startswith(prefix)]
        if names:
            module = model.get_submodule(prefix.removesuffix(".")).to_empty(device="cpu")
            module.apply(model._init_weights)
            tensors |= {name: module.state_dict()[name.removeprefix(prefix)].to(dtype) for name in names}
    return tensors


def make_processor(config, tokenizer, statistics: dict) -> LlavaOVManagerProcessor:
    """The processor of a model. statistics: image_mean and image_std, SigLIP's 0.5 where they are not given."""
    image_processor = LlavaOVManagerImageProcessor(
        size=config.vision_config.image_size,
        patch_size=config.vision_config.patch_size,
        tiling=config.tiling,
        **statistics,
    )
    return LlavaOVManagerProcessor(image_processor=image_processor, tokenizer=tokenizer)


def generation_config(folders: Sequence[Path], tokenizer) -> GenerationConfig:
    """Where answers end, as the first folder with generation settings says, else as the tokenizer does.

    Sampling and penalties are left behind: Qwen2-Instruct's repetition_penalty of 1.1 changes greedy answers.
    """
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    for folder in folders:
        if (folder / "generation_config.json").is_file():
            settings = read_json(folder / "generation_config.json")
            ends |= {key: settings[key] for key in ends if settings.get(key) is not None}
            break
    return GenerationConfig(**ends)
