"""The released model's format (LLaVA-NeXT and its fork): names, configuration, stage-1 projectors.

Published so: LooperXX/LLaVA-OV-Manager (model_type `llava_qwen`, `llava_qwen_manager`) and
lmms-lab/llava-onevision-qwen2-* (`llava`).
"""

from dataclasses import replace
from pathlib import Path

import torch
from transformers import PreTrainedConfig, Qwen2Config, SiglipVisionConfig

from llava.anyres import TilingConfig
from llava.checkpoint.compose import language_model_part, part_config, tower_part
from llava.checkpoint.folder import CONFIG, TOWER_FOLDER_TYPES
from llava.checkpoint.match import Part, Rules
from llava.constants import RELEASED_MODEL_TYPES
from llava.convert.parts import LAYERS_DROPPED
from llava.convert.source import Source, newline_if_unused, read_config
from llava.errors import LlavaError
from llava.fusion.config import FusionConfig
from llava.fusion.configs.manager import ManagerConfig
from llava.fusion.configs.none import NoneConfig
from llava.mllm.parts import NEWLINE, UNUSED
from llava.text_files import read_json

# What stage 1 trains: these names carry different prefixes where DeepSpeed or peft wrapped the model.
_ADAPTER = (
    (r"mm_projector\.0\.(.+)", r"model.multi_modal_projector.linear_1.\1"),
    (r"mm_projector\.2\.(.+)", r"model.multi_modal_projector.linear_2.\1"),
    (r"image_newline", r"model.image_newline.weight"),
    (r"manager_layer_embedding", r"model.fusion.layer_embedding"),
    (r"manager\.(\d+)\.layer_scores", r"model.fusion.managers.\1.scores"),
    (r"manager\.(\d+)\.zero_gate", r"model.fusion.managers.\1.gate"),
    (r"manager\.(\d+)\.linear_controller\.(.+)", r"model.fusion.managers.\1.controller.\2"),
    (r"manager\.(\d+)\.fusion_attention\.q_proj\.(.+)", r"model.fusion.managers.\1.query_proj.\2"),
    (r"manager\.(\d+)\.fusion_attention\.k_proj\.(.+)", r"model.fusion.managers.\1.key_proj.\2"),
)
RULES = Rules(
    renames=(
        (r"model\.vision_tower\.vision_tower\.vision_model\.(.+)", r"model.vision_tower.\1"),
        *((r"model\." + pattern, replacement) for pattern, replacement in _ADAPTER),
        (r"model\.((?:layers|embed_tokens|norm)\..+)", r"model.language_model.\1"),
        (r"lm_head\.weight", r"lm_head.weight"),
    ),
    ignored=(
        (r".+\.rotary_emb\.inv_freq", "rotary buffer"),
        (r".+\.embeddings\.position_ids", "position buffer"),
        (r"model\.vision_tower\.vision_tower\.vision_model\.head\..+", "pooling head"),
    ),
)
ADAPTER_RULES = Rules(tuple((r"(?:(?:base_model|module|model)\.)*" + p, r) for p, r in _ADAPTER))

# Towers whose sizes are known by name, because the released config.json only names the tower.
TOWERS = {
    "siglip-so400m-patch14-384": {
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
        "image_size": 384,
        "patch_size": 14,
    }
}
TEXT_FIELDS = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "hidden_act", "max_position_embeddings", "initializer_range", "rms_norm_eps", "use_cache"),
    *("tie_word_embeddings", "rope_theta", "rope_scaling", "rope_parameters", "attention_dropout"),
    *("use_sliding_window", "sliding_window", "max_window_layers", "bos_token_id", "eos_token_id", "pad_token_id"),
)
NEEDED_TEXT_FIELDS = TEXT_FIELDS[:6]
# Settings that change what the model computes, and the values of them that this model has; None is a missing one.
SUPPORTED = {
    "mm_projector_type": ("mlp2x_gelu",),
    "mm_resampler_type": (None,),
    "mm_use_im_start_end": (None, False),
}
# Settings of videos alone: the model is the same for images, whatever they say, so that others are noted, not refused.
# (`grid`, the training script's default, is written into checkpoints that never saw a video.)
VIDEO_SETTINGS = {
    "mm_newline_position": (None, "one_token"),
    "mm_spatial_pool_mode": (None, "bilinear"),
    "mm_spatial_pool_stride": (None, 2),
}
# mm_manager_type: the query of its adaptive managers.
_MANAGER_QUERIES = {
    "static_zerouni": None,
    "static_zerouni_zero": None,
    "adaptive_zerouni": "self",
    "adaptive_last_zerouni": "last",
    "adaptive_average_zerouni": "average",
    "adaptive_cross_zerouni": "cross",
}


def convert_tensor(released_name: str, tensor: torch.Tensor) -> torch.Tensor:
    """A released tensor in this model's shape: scores and gates of managers lose their two dimensions of size 1."""
    squeezed = released_name.endswith((".layer_scores", ".zero_gate")) and tensor.dim() == 4
    return tensor[0, :, 0] if squeezed and tensor.shape[0] == tensor.shape[2] == 1 else tensor


def tiling_from_released(config: dict, tile: int, newline_after_one_crop: bool = False) -> TilingConfig:
    """Tiling from the fields of a released config.json; one square crop where it does not speak of tiling.

    Args:
        config: The fields.
        tile: Width and height of a crop, in pixels.
        newline_after_one_crop: Whether its code ends a one-crop image with a newline, where merging unpads.
    """
    merge = config.get("mm_patch_merge_type", "flat")
    aspect_ratio, pinpoints = config.get("image_aspect_ratio") or "square", config.get("image_grid_pinpoints")
    tiling = TilingConfig.from_llava(aspect_ratio, merge, pinpoints, tile)
    return replace(tiling, newline_after_one_crop=newline_after_one_crop and merge == "spatial_unpad")


def fusion_from_released(config: dict) -> FusionConfig:
    """Managers from the fields of a released config.json; `none` for a model without. Raises LlavaError."""
    kind = config.get("mm_manager_type")
    if not kind:
        return NoneConfig()
    if kind not in _MANAGER_QUERIES:
        raise LlavaError(f"unknown mm_manager_type {kind!r}; known: {', '.join(_MANAGER_QUERIES)}")
    if config.get("mm_manager_residual") is False:
        raise LlavaError("mm_manager_residual false is not supported, only true")
    return ManagerConfig(
        vision_layers=_layers(config, "mm_manager_select_layer_index_list", "mm_manager_vision_select_layers"),
        injection_layers=_layers(config, "mm_manager_index_list", "mm_manager_injection"),
        first_omits_last_map=True,
        scope=config.get("mm_manager_grid_type") or "all",
        jitter="released",
        query=_MANAGER_QUERIES[kind],
        question="released",
    )


def _layers(config: dict, listed: str, ranged: str) -> list[int]:
    """Layers as the model listed them when it was built, or from the range that it was told."""
    if config.get(listed) is not None:
        return config[listed]
    try:
        return list(range(*(config[f"{ranged}_{end}"] for end in ("start", "end", "interval"))))
    except KeyError as error:
        raise LlavaError(f"config.json has managers, but neither {listed} nor {error.args[0]}") from None


def released_source(
    name: str, folder: Path, config: dict, tower_folder: Path | None, newline_after_one_crop: bool | None
) -> Source:
    """A whole released checkpoint.

    Args:
        name: As the user gave it.
        folder: Of the checkpoint.
        config: The fields of its config.json.
        tower_folder: The tower's, for its sizes, and for its weights if the checkpoint lacks them.
        newline_after_one_crop: None decides by model_type: only the original code, `llava`, appends one.

    Raises:
        LlavaError: A setting is not supported, sizes or the tower's weights are not to be had, or weights are damaged.
    """
    check_supported(config, folder)
    part = Part.open(folder, RULES, convert_tensor)
    tower_folder = tower_folder or _named_folder(config)
    vision = _tower_config(config, folder, tower_folder)
    present, used = part.num_vision_layers(), vision.num_hidden_layers - LAYERS_DROPPED
    vision.num_hidden_layers = min(present, used) if present else used
    parts = (part,) if present else (part, _tower_of(config, folder, tower_folder))
    if newline_after_one_crop is None:
        newline_after_one_crop = config["model_type"] == "llava"
    tiling = tiling_from_released(config, vision.image_size, newline_after_one_crop)
    return Source(
        name=name,
        kind=f"released model ({config['model_type']})",
        parts=parts,
        vision=vision,
        text=_text_config(config, folder),
        fusion=fusion_from_released(config),
        tiling=tiling,
        folders=(folder, *([tower_folder] if tower_folder else [])),
        may_be_new=(*UNUSED, *newline_if_unused(tiling)),
        notes=video_notes(config),
    )


def projector_source(
    name: str, file: Path, tower_folder: Path, language_model_folder: Path, newline_after_one_crop: bool | None
) -> Source:
    """A stage-1 mm_projector.bin on the tower and the language model that it was trained with.

    A config.json beside it tells managers and tiling; without one there are none, and one square crop.

    Args:
        name: As the user gave it.
        file: mm_projector.bin.
        tower_folder: The tower's.
        language_model_folder: The language model's.
        newline_after_one_crop: None decides by model_type, as for a whole checkpoint.

    Raises:
        LlavaError: A setting is not supported, or weights are damaged.
    """
    described = file.parent / CONFIG
    config = read_released_config(described) if described.is_file() else {"mm_projector_type": "mlp2x_gelu"}
    check_supported(config, file.parent)
    tower, language_model = tower_part(tower_folder), language_model_part(language_model_folder)
    vision = part_config(tower_folder)
    vision.num_hidden_layers -= LAYERS_DROPPED
    if newline_after_one_crop is None:
        newline_after_one_crop = config.get("model_type") == "llava"
    return Source(
        name=name,
        kind="stage-1 projector",
        parts=(Part.open(file, ADAPTER_RULES, convert_tensor), tower, language_model),
        vision=vision,
        text=part_config(language_model_folder),
        fusion=fusion_from_released(config),
        tiling=tiling_from_released(config, vision.image_size, newline_after_one_crop),
        folders=(file.parent, language_model_folder, tower_folder),
        may_be_new=(*UNUSED, NEWLINE),  # the newline is made when stage 1 is over
        notes=video_notes(config),
    )


def read_released_config(path: Path) -> dict:
    """A released config.json; LlavaError for another model's."""
    config = read_json(path)
    architectures = config.get("architectures") or ["LlavaQwen"]
    if config.get("model_type") not in RELEASED_MODEL_TYPES or not str(architectures[0]).startswith("LlavaQwen"):
        raise LlavaError(
            f"{path}: a {config.get('model_type')!r} model of architecture {architectures[0]}; expected LlavaQwen..."
        )
    return config


def check_supported(config: dict, folder: Path) -> None:
    """Raises LlavaError for a setting that this model does not have."""
    for key, values in SUPPORTED.items():
        if config.get(key) not in values:
            supported = " or ".join(repr(value) for value in values if value is not None) or "none"
            raise LlavaError(f"{folder / CONFIG}: {key} {config.get(key)!r} is not supported, only {supported}")


def video_notes(config: dict) -> tuple[str, ...]:
    """What of the source's handling of videos this model does otherwise, in words."""
    return tuple(
        f"{key} is {config[key]!r}; this model takes a video as with {values[-1]!r}; images are the same"
        for key, values in VIDEO_SETTINGS.items()
        if config.get(key) not in values
    )


def _text_config(config: dict, folder: Path) -> Qwen2Config:
    missing = [field for field in NEEDED_TEXT_FIELDS if field not in config]
    if missing:
        raise LlavaError(f"{folder / CONFIG}: has no {', '.join(missing)}")
    fields = {field: config[field] for field in TEXT_FIELDS if config.get(field) is not None}
    return read_config(Qwen2Config, folder, fields)


def _named_folder(config: dict) -> Path | None:
    """The tower's folder where the configuration names one that is there."""
    path = Path(config.get("mm_vision_tower") or "") / CONFIG
    return path.parent if path.is_file() and read_json(path).get("model_type") in TOWER_FOLDER_TYPES else None


def _tower_config(config: dict, folder: Path, tower_folder: Path | None) -> PreTrainedConfig:
    """The tower as it is built, before its last layer is removed."""
    if tower_folder is not None:
        return part_config(tower_folder)
    named = config.get("mm_vision_tower")
    sizes = next((sizes for name, sizes in TOWERS.items() if name in (named or "")), None)
    if sizes is None:
        raise LlavaError(
            f"{folder / CONFIG}: the sizes of its mm_vision_tower {named!r} are not known; "
            "give a folder with the tower's config.json: --vision_tower DIR"
        )
    return SiglipVisionConfig(**sizes)


def _tower_of(config: dict, folder: Path, tower_folder: Path | None) -> Part:
    if tower_folder is None:
        raise LlavaError(
            f"{folder}: its weights hold no vision tower; give the folder of {config.get('mm_vision_tower')}: "
            "--vision_tower DIR"
        )
    return tower_part(tower_folder)
