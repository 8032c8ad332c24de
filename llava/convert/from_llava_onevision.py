"""transformers' llava_onevision format: names and configuration. Published as llava-hf/llava-onevision-*."""

from pathlib import Path

from transformers import LlavaOnevisionConfig

from llava.anyres import TilingConfig
from llava.checkpoint.folder import CONFIG
from llava.checkpoint.match import Part, Rules
from llava.constants import LANGUAGE_MODEL_TYPES, ONEVISION_TOWER_TYPES
from llava.convert.source import Source, read_config
from llava.errors import LlavaError
from llava.fusion.configs.none import NoneConfig

# On disk the names are those of the first release, or those of the classes since; each prefix may be there or not.
RULES = Rules(
    renames=(
        (
            r"(?:model\.)?vision_tower\.(?:vision_model\.)?((?:embeddings|encoder|post_layernorm)\..+)",
            r"model.vision_tower.\1",
        ),
        (r"(?:model\.)?multi_modal_projector\.(linear_[12]\..+)", r"model.multi_modal_projector.\1"),
        (r"(?:model\.)?image_newline", r"model.image_newline.weight"),
        (
            r"(?:model\.)?language_model\.(?:model\.)?((?:layers|embed_tokens|norm)\..+)",
            r"model.language_model.\1",
        ),
        (r"(?:language_model\.)?lm_head\.weight", r"lm_head.weight"),
    ),
    ignored=(
        (r".+\.rotary_emb\.inv_freq", "rotary buffer"),
        (r".+\.embeddings\.position_ids", "position buffer"),
        (r"(?:model\.)?vision_tower\.(?:vision_model\.)?head\..+", "pooling head"),
    ),
)
# Settings that change what the model computes, and the one value of each that this model has.
SUPPORTED = {
    "vision_feature_select_strategy": "full",
    "projector_hidden_act": "gelu",
    "multimodal_projector_bias": True,
}


def onevision_source(name: str, folder: Path, newline_after_one_crop: bool | None) -> Source:
    """A whole llava_onevision checkpoint.

    Args:
        name: As the user gave it.
        folder: Of the checkpoint.
        newline_after_one_crop: None is as transformers does, true.

    Raises:
        LlavaError: A part or a setting is not supported, or weights are damaged.
    """
    config = read_config(LlavaOnevisionConfig, folder)
    check_supported(config, folder)
    vision = config.vision_config
    vision.num_hidden_layers = _used_layers(config, folder)
    return Source(
        name=name,
        kind="transformers llava_onevision",
        parts=(Part.open(folder, RULES),),
        vision=vision,
        text=config.text_config,
        fusion=NoneConfig(),
        tiling=tiling_from_onevision(config, newline_after_one_crop is not False),
        folders=(folder,),
        visual_token_ids={"image_token_id": config.image_token_index, "video_token_id": config.video_token_index},
    )


def tiling_from_onevision(config: LlavaOnevisionConfig, newline_after_one_crop: bool = True) -> TilingConfig:
    """Its pinpoints are (height, width), ours (width, height); what an image keeps of the padded map is rounded."""
    pinpoints = [(width, height) for height, width in config.image_grid_pinpoints]
    tiling = TilingConfig.from_llava(config.vision_aspect_ratio, "spatial_unpad", pinpoints, tile=0)
    return TilingConfig(
        **{**tiling.to_dict(), "newline_after_one_crop": newline_after_one_crop, "unpad_rounding": "round"}
    )


def check_supported(config: LlavaOnevisionConfig, folder: Path) -> None:
    """Raises LlavaError for parts or settings that this model does not have."""
    where = folder / CONFIG
    for key, kinds in (("vision_config", ONEVISION_TOWER_TYPES), ("text_config", LANGUAGE_MODEL_TYPES)):
        model_type = getattr(config, key).model_type
        if model_type not in kinds:
            supported = " and ".join(map(repr, kinds))
            raise LlavaError(f"{where}: its {key} is of type {model_type!r}; only {supported} is supported")
    for key, value in SUPPORTED.items():
        if getattr(config, key) != value:
            raise LlavaError(f"{where}: {key} {getattr(config, key)!r} is not supported, only {value!r}")


def _used_layers(config: LlavaOnevisionConfig, folder: Path) -> int:
    """The layer of the tower whose state is the visual input; those above it do nothing."""
    layer, built = config.vision_feature_layer, config.vision_config.num_hidden_layers
    layer = layer[0] if isinstance(layer, (list, tuple)) and len(layer) == 1 else layer
    if not isinstance(layer, int) or not -built <= layer <= built or layer == 0:
        raise LlavaError(f"{folder / CONFIG}: vision_feature_layer {layer} does not name one of {built} layers")
    return layer if layer > 0 else built + 1 + layer
