"""Names of the released model (the LLaVA-NeXT fork) and what they are called here."""

import re

from llava.anyres import TilingConfig
from llava.errors import LlavaError
from llava.managers import ManagerConfig

# (pattern, replacement), tried in order; the first match decides.
_RENAMES = (
    (r"model\.vision_tower\.vision_tower\.vision_model\.(.+)", r"model.vision_tower.\1"),
    (r"model\.mm_projector\.0\.(.+)", r"model.multi_modal_projector.linear_1.\1"),
    (r"model\.mm_projector\.2\.(.+)", r"model.multi_modal_projector.linear_2.\1"),
    (r"model\.image_newline", r"model.image_newline.weight"),
    (r"model\.manager_layer_embedding", r"model.managers.layer_embedding"),
    (r"model\.manager\.(\d+)\.layer_scores", r"model.managers.managers.\1.scores"),
    (r"model\.manager\.(\d+)\.zero_gate", r"model.managers.managers.\1.gate"),
    (r"model\.manager\.(\d+)\.linear_controller\.(.+)", r"model.managers.managers.\1.controller.\2"),
    (r"model\.manager\.(\d+)\.fusion_attention\.q_proj\.(.+)", r"model.managers.managers.\1.query_proj.\2"),
    (r"model\.manager\.(\d+)\.fusion_attention\.k_proj\.(.+)", r"model.managers.managers.\1.key_proj.\2"),
    (r"model\.((?:layers|embed_tokens|norm)\..+)", r"model.language_model.\1"),
    (r"lm_head\.weight", r"lm_head.weight"),
)
# mm_manager_type: the query of its adaptive managers.
_MANAGER_QUERIES = {
    "static_zerouni": None,
    "static_zerouni_zero": None,
    "adaptive_zerouni": "self",
    "adaptive_last_zerouni": "last",
    "adaptive_average_zerouni": "average",
    "adaptive_cross_zerouni": "cross",
}


def our_name(reference_name: str) -> str:
    """The name of a released parameter in this model; LlavaError if there is none."""
    for pattern, replacement in _RENAMES:
        if re.fullmatch(pattern, reference_name):
            return re.sub(pattern, replacement, reference_name)
    raise LlavaError(f"no counterpart is known for the parameter {reference_name!r}")


def convert_tensor(reference_name: str, tensor):
    """A released tensor in this model's shape: scores and gates of managers lose their two dimensions of size 1."""
    return tensor[0, :, 0] if reference_name.endswith((".layer_scores", ".zero_gate")) else tensor


def tiling_from_reference(config: dict, tile: int) -> TilingConfig:
    """Tiling from the fields of a released config.json."""
    return TilingConfig.from_llava(
        config["image_aspect_ratio"], config["mm_patch_merge_type"], config.get("image_grid_pinpoints"), tile
    )


def managers_from_reference(config: dict) -> ManagerConfig | None:
    """Managers from the fields of a released config.json; None for a model without."""
    kind = config.get("mm_manager_type")
    if kind is None:
        return None
    if kind not in _MANAGER_QUERIES:
        raise LlavaError(f"unknown mm_manager_type {kind!r}; known: {', '.join(_MANAGER_QUERIES)}")
    return ManagerConfig(
        vision_layers=config["mm_manager_select_layer_index_list"],
        injection_layers=config["mm_manager_index_list"],
        first_omits_last_map=True,
        scope=config["mm_manager_grid_type"] or "all",
        jitter="released",
        query=_MANAGER_QUERIES[kind],
        question="released",
    )
