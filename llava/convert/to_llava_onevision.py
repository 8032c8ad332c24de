"""A model without fusion in transformers' own format, `llava_onevision`: what of it can be said there, and how."""

from transformers import LlavaOnevisionConfig

from llava.constants import IMAGE_TOKEN, ONEVISION_TOWER_TYPES, VIDEO_TOKEN
from llava.errors import LlavaError
from llava.fusion.configs.none import NoneConfig
from llava.mllm.configuration import LlavaOVManagerConfig

ARCHITECTURE = "LlavaOnevisionForConditionalGeneration"
_BICUBIC = 3  # Pillow's number, which the files hold


def check_expressible(config: LlavaOVManagerConfig) -> tuple[list[str], list[str]]:
    """Whether plain transformers computes the same from this model's inputs.

    Returns:
        (differences, notes): kinds of input for which it would not, and remarks on single sizes.

    Raises:
        LlavaError: The format has no words for the model or its tiling; the message says what would be lost.
    """
    tiling, tower = config.tiling, config.vision_config.model_type
    if tower not in ONEVISION_TOWER_TYPES:
        raise LlavaError(
            f"the model's tower is of type {tower}; llava_onevision is written of {', '.join(ONEVISION_TOWER_TYPES)} "
            "alone: export it with --format remote_code"
        )
    if config.fusion != NoneConfig():
        raise LlavaError(
            f"the model has {config.fusion.describe()}; llava_onevision has no place for that and the model would be "
            "another without: export it with --format remote_code"
        )
    if tiling.mode != "anyres" or tiling.merge != "spatial_unpad":
        raise LlavaError(
            f"the model's tiling is {tiling.mode} with merge {tiling.merge}; llava_onevision knows anyres with "
            "spatial_unpad only: export it with --format remote_code"
        )
    differences, notes = [], []
    if not tiling.newline_after_one_crop:
        differences.append("prompts of several images: it adds a newline at the end of each, this model does not")
    if tiling.unpad_rounding != "round":
        notes.append(
            "for about 1 in 70,000 image sizes transformers keeps one row or column of patches more or less than this "
            "model, because it rounds to 7 decimals where this model truncates (tiling.unpad_rounding)"
        )
    return differences, notes


def onevision_config(config: LlavaOVManagerConfig) -> LlavaOnevisionConfig:
    """The configuration of the same model; its config.json names `architectures` and keeps the dtype."""
    return LlavaOnevisionConfig(
        architectures=[ARCHITECTURE],
        dtype=config.dtype,
        vision_config=config.vision_config,
        text_config=config.text_config,
        image_token_index=config.image_token_id,
        video_token_index=config.video_token_id,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        vision_aspect_ratio=_aspect_ratio(config),
        image_grid_pinpoints=_grid_pinpoints(config),
        tie_word_embeddings=config.tie_word_embeddings,
    )


def onevision_name(name: str) -> str:
    """The parameter's name there: the newline is no module."""
    return "model.image_newline" if name == "model.image_newline.weight" else name


def onevision_processor(config: LlavaOVManagerConfig, image_processor: dict) -> dict:
    """The content of processor_config.json of LlavaOnevisionProcessor.

    Args:
        config: Of this model.
        image_processor: The fields of this package's image processor, of which mean and deviation carry over.
    """
    tile = config.vision_config.image_size
    pixels = {
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": image_processor["image_mean"],
        "image_std": image_processor["image_std"],
        "resample": _BICUBIC,
        "rescale_factor": 1 / 255,
        "size": {"height": tile, "width": tile},
    }
    return {
        "processor_class": "LlavaOnevisionProcessor",
        "image_token": IMAGE_TOKEN,
        "video_token": VIDEO_TOKEN,
        "num_image_tokens": config.patches_per_side**2,
        "vision_feature_select_strategy": "full",
        "vision_aspect_ratio": _aspect_ratio(config),
        "image_processor": {
            "image_processor_type": "LlavaOnevisionImageProcessor",
            "do_pad": True,
            "image_grid_pinpoints": _grid_pinpoints(config),
            **pixels,
        },
        "video_processor": {
            "video_processor_type": "LlavaOnevisionVideoProcessor",
            "do_sample_frames": False,
            **pixels,
        },
    }


def _aspect_ratio(config: LlavaOVManagerConfig) -> str:
    """`anyres_max_N`. Without a budget, N is the largest grid's number of tiles, to which nothing is ever shrunk."""
    tile = config.vision_config.image_size
    largest = max(width * height for width, height in config.tiling.pinpoints) // tile**2
    return f"anyres_max_{config.tiling.max_tiles or largest}"


def _grid_pinpoints(config: LlavaOVManagerConfig) -> list[list[int]]:
    """transformers has (height, width)."""
    return [[height, width] for width, height in config.tiling.pinpoints]
