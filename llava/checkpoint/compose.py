"""A vision tower and a language model as their publishers save them, joined to one model.

The composition is written once: stage 1 loads it (llava/train/mllm/build.py), `llava convert import` writes it down.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from llava.checkpoint.folder import CONFIG, IMAGE_PROCESSOR_CONFIG, PROCESSOR_CONFIG
from llava.checkpoint.match import Part, Rules, check_tied_head, match_keys, read_matched
from llava.data.image_processor import LlavaOVManagerImageProcessor
from llava.data.processor import LlavaOVManagerProcessor
from llava.errors import LlavaError
from llava.mllm.configuration import LlavaOVManagerConfig
from llava.mllm.kinds import TOWER_KINDS, square_sizes
from llava.mllm.parts import FUSION, HEAD, NEWLINE, PROJECTOR, UNUSED
from llava.text_files import read_json

# Names in a tower's folder, of all kinds: none means two things. Prefixes are those of a whole model or a classifier.
_TOWER = r"(?:vision_model\.|dinov2\.|dinov2_with_registers\.)?"
_DINOV2 = {  # published DINOv2's names of a layer's matrices: ours
    r"attention\.attention\.query": "attention.q_proj",
    r"attention\.attention\.key": "attention.k_proj",
    r"attention\.attention\.value": "attention.v_proj",
    r"attention\.output\.dense": "attention.o_proj",
    r"mlp\.weights_out": "mlp.down_proj",
}
TOWER_RULES = Rules(
    renames=(
        *(
            (rf"{_TOWER}(encoder\.layer\.\d+)\.{theirs}\.(.+)", rf"model.vision_tower.\1.{ours}.\2")
            for theirs, ours in _DINOV2.items()
        ),
        (
            _TOWER + r"((?:embeddings|pre_layrnorm|encoder|post_layernorm|layernorm)\..+)",
            r"model.vision_tower.\1",
        ),
    ),
    ignored=(
        (r"(?:vision_model\.)?head\..+", "pooling head"),
        (_TOWER + r"embeddings\.position_ids", "position buffer"),
        (r"text_model\..+|text_projection\.weight|logit_scale|logit_bias", "text tower"),
        (r"visual_projection\.weight|classifier\..+", "head of another task"),
    ),
)
LANGUAGE_MODEL_RULES = Rules(
    renames=(
        (r"(?:model\.)?((?:layers|embed_tokens|norm)\..+)", r"model.language_model.\1"),
        (r"lm_head\.weight", r"lm_head.weight"),
    ),
    ignored=((r".+\.rotary_emb\.inv_freq", "rotary buffer"),),
)


def part_config(folder: Path) -> PreTrainedConfig:
    """The configuration of a language model, or of a vision tower with all its layers, alone or beside a text tower.

    Raises:
        LlavaError: config.json has values that the model does not take.
    """
    try:
        config = AutoConfig.from_pretrained(folder)
    except (OSError, TypeError, ValueError, KeyError, StrictDataclassError) as error:
        raise LlavaError(f"{folder / CONFIG}: no configuration of a model ({' '.join(str(error).split())})") from error
    part = config.vision_config if "vision_config" in config.sub_configs else config
    if part.model_type in TOWER_KINDS:
        try:
            square_sizes(part)
        except LlavaError as error:
            raise LlavaError(f"{folder / CONFIG}: {error}") from None
    return part


def tower_part(folder: Path) -> Part:
    """The tower's weights, of the whole model or of its vision tower alone."""
    return Part.open(folder, TOWER_RULES, apart=_gate_and_up)


def _gate_and_up(name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    """The two matrices that published DINOv2 folders with SwiGLU hold as one."""
    if ".mlp.weights_in." not in name:
        return {name: tensor}
    gate, up = tensor.chunk(2)
    return {name.replace("weights_in", "gate_proj"): gate, name.replace("weights_in", "up_proj"): up}


def language_model_part(folder: Path) -> Part:
    """The language model's weights."""
    return Part.open(folder, LANGUAGE_MODEL_RULES)


def expected_shapes(model: PreTrainedModel) -> dict[str, torch.Size]:
    """{name: shape} of what a checkpoint of the model holds: a tied head is not saved."""
    tied = model.config.tie_word_embeddings
    return {name: tensor.shape for name, tensor in model.state_dict().items() if not (tied and name == HEAD)}


def load_parts(model: PreTrainedModel, tower_folder: Path, language_model_folder: Path) -> None:
    """Loads both into a model whose projector, newline and fusion keep their values; in the model's dtype.

    Args:
        model: Of this class, not on the meta device.
        tower_folder: The tower's, with its unused layers or without.
        language_model_folder: The language model's.

    Raises:
        LlavaError: A weight is missing, unknown or of another shape.
    """
    parts = (tower_part(tower_folder), language_model_part(language_model_folder))
    match = match_keys(parts, expected_shapes(model), (*UNUSED, PROJECTOR, NEWLINE, FUSION))
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
        statistics: `image_mean` and `image_std` per channel; those of the tower's kind where they are not given.
    """
    mean, std = TOWER_KINDS[config.vision_config.model_type].statistics
    image_processor = LlavaOVManagerImageProcessor(
        size=config.vision_config.image_size,
        patch_size=config.vision_config.patch_size,
        tiling=config.tiling,
        **{"image_mean": mean, "image_std": std} | statistics,
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
