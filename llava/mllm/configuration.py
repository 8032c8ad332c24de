"""The one configuration of a LLaVA-OV-Manager model, saved as config.json."""

from dataclasses import fields, replace
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from llava.anyres import TilingConfig
from llava.constants import LANGUAGE_MODEL_TYPES, TOWER_TYPES
from llava.errors import LlavaError
from llava.fusion.config import FusionConfig, Sizes
from llava.fusion.configs.none import NoneConfig
from llava.fusion.methods import fusion_config
from llava.mllm.kinds import check_kind, settle_tower
from llava.mllm.sub_configs import SubConfigSpec, complete


class LlavaOVManagerConfig(PreTrainedConfig):
    r"""Vision tower, language model, fusion and tiling.

    Args:
        vision_config (`SiglipVisionConfig`, another of TOWER_TYPES or `dict`): the tower as it is used: its last state
            is the visual input. Without `model_type` it is SigLIP's.
        text_config (`Qwen2Config`, `Qwen3Config` or `dict`): the language model. Without
            `model_type` it is Qwen2's.
        fusion (`FusionConfig` or `dict`, *optional*): how the tower's layers reach the language model, `method` and its
            fields; default `none`. Files before it have `managers`, the fields of the method `manager`, or null.
        tiling (`TilingConfig` or `dict`, *optional*): how images become crops and tokens; default one square crop.
        image_token_id, video_token_id (`int`): ids of the placeholders `<image>` and `<video>`; 151646 and 151647 in
            Qwen2's vocabulary.
        turn_start_token_id, turn_end_token_id, newline_token_id (`int`): ids of `<|im_start|>`, `<|im_end|>` and a
            newline, by which an image's question is found; defaults as in Qwen2's vocabulary.
        image_mean, image_std (`list[float]`, *optional*): of the processor, by channel, on values from 0 to 1: by them
            the model normalises uint8 pixels. Pixels that are numbers already need neither.

    Raises `LlavaError` for another kind of tower or language model, when layers do not exist, when a pinpoint is not a
    whole number of tiles, or when a field of `fusion` or `tiling` is unknown.
    """

    model_type = "llava_ov_manager"
    sub_configs_defaults = {
        "vision_config": SubConfigSpec(
            config_class=AutoConfig, model_type="siglip_vision_model", init_kwargs={"vision_use_head": False}
        ),
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="qwen2"),
    }
    sub_configs = {name: AutoConfig for name in sub_configs_defaults}

    vision_config: Any = None
    text_config: Any = None
    fusion: Any = None
    tiling: Any = None
    image_token_id: int = 151646
    video_token_id: int = 151647
    turn_start_token_id: int = 151644
    turn_end_token_id: int = 151645
    newline_token_id: int = 198
    image_mean: list[float] | None = None
    image_std: list[float] | None = None
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        if "managers" in kwargs:
            managers = kwargs.pop("managers")
            if self.fusion is not None:
                raise LlavaError("managers is the former name of fusion: both are given")
            self.fusion = {"method": "manager", **managers} if managers is not None else None
        complete(self, self.sub_configs_defaults)
        super().__post_init__(**kwargs)
        check_kind(self.vision_config, "the tower", TOWER_TYPES)
        check_kind(self.text_config, "the language model", LANGUAGE_MODEL_TYPES)
        settle_tower(self.vision_config)
        self.tie_word_embeddings = self.text_config.tie_word_embeddings
        self.tiling = _tiling(self.tiling if self.tiling is not None else {})
        tile = self.vision_config.image_size
        for width, height in self.tiling.pinpoints:
            if width % tile or height % tile:
                raise LlavaError(f"pinpoint ({width}, {height}) is not a whole number of tiles of {tile} pixels")
        fusion = self.fusion if self.fusion is not None else NoneConfig()
        if isinstance(fusion, dict):
            fusion = fusion_config(fusion)
        if not isinstance(fusion, FusionConfig):
            raise LlavaError(f"fusion must be given by its method and fields, found {fusion!r}")
        self.fusion = fusion.resolved(self.vision_config.num_hidden_layers, self.text_config.num_hidden_layers)
        self.tiling = replace(
            self.tiling,
            extra_tokens=self.fusion.extra_tokens(self.patches_per_side**2),
            in_sequence=self.fusion.in_sequence,
        )

    @property
    def patches_per_side(self) -> int:
        """Of a crop."""
        return self.vision_config.image_size // self.vision_config.patch_size

    @property
    def sizes(self) -> Sizes:
        """What a method of fusion needs to know of the model."""
        vision, text = self.vision_config, self.text_config
        return Sizes(
            vision_layers=vision.num_hidden_layers,
            vision_width=vision.hidden_size,
            text_layers=text.num_hidden_layers,
            text_width=text.hidden_size,
            crop_tokens=self.patches_per_side**2,
            text_heads=text.num_attention_heads,
            text_key_value_heads=text.num_key_value_heads,
            text_mlp_width=text.intermediate_size,
        )

    def to_dict(self) -> dict[str, Any]:
        """As transformers' own, with JSON values."""
        output = super().to_dict()
        output["fusion"] = self.fusion.to_dict()
        output["tiling"] = self.tiling.to_dict()
        return output


def _tiling(value: Any) -> TilingConfig:
    if isinstance(value, TilingConfig):
        return value
    if not isinstance(value, dict):
        raise LlavaError(f"TilingConfig must be given by its fields, found {value!r}")
    names = [one.name for one in fields(TilingConfig)]
    unknown = sorted(set(value) - set(names))
    if unknown:
        raise LlavaError(f"TilingConfig has no field {', '.join(unknown)}; it has {', '.join(names)}")
    try:
        return TilingConfig(**value)
    except TypeError as error:  # a field is missing, or has a value of the wrong kind
        raise LlavaError(f"TilingConfig: {error}") from None
