"""What the kinds of vision towers and language models differ in, as data and from their configurations alone.

All towers are ViTs of transformers: an embedding of square patches, layers of one width, and a norm behind the last
that no state passes here. All language models are Qwen2's kin: llava/mllm/decoder.py.
"""

from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedConfig

from llava.constants import CLIP_MEAN, CLIP_STD
from llava.errors import LlavaError

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
OPENAI = CLIP_MEAN, CLIP_STD


@dataclass(frozen=True)
class TowerKind:
    """A kind of tower.

    statistics: mean and deviation of its pixels by channel, where its folder states none. leading_tokens: in front of
    the patches, besides registers; they pass the layers and reach nothing else.
    """

    statistics: tuple[tuple[float, ...], tuple[float, ...]]
    leading_tokens: int


TOWER_KINDS = {
    "siglip_vision_model": TowerKind(((0.5,) * 3, (0.5,) * 3), leading_tokens=0),  # SigLIP2's at one resolution, too
    "clip_vision_model": TowerKind(OPENAI, leading_tokens=1),
    "dinov2": TowerKind(IMAGENET, leading_tokens=1),
    "dinov2_with_registers": TowerKind(IMAGENET, leading_tokens=1),
}
NORMS_QUERIES_AND_KEYS = ("qwen3",)


def leading_tokens(vision: PreTrainedConfig) -> int:
    """Of a tower, the tokens in front of the patches: a class token and registers."""
    return TOWER_KINDS[vision.model_type].leading_tokens + vision.to_dict().get("num_register_tokens", 0)


def mlp_sizes(vision: PreTrainedConfig) -> tuple[int, int]:
    """Of a layer's MLP in a tower, how many matrices it has, and the width between them."""
    fields = vision.to_dict()
    if "mlp_ratio" not in fields:
        return 2, fields["intermediate_size"]
    width = int(vision.hidden_size * vision.mlp_ratio)
    return (3, (width * 2 // 3 + 7) // 8 * 8) if vision.use_swiglu_ffn else (2, width)


def head_width(text: PreTrainedConfig) -> int:
    """Of a language model's query, key and value in one head."""
    return text.to_dict().get("head_dim") or text.hidden_size // text.num_attention_heads


def check_kind(part: Any, name: str, kinds: tuple[str, ...]) -> None:
    """LlavaError unless the configuration is one of these kinds. name: of the part, in words."""
    if part.model_type not in kinds:
        computed = f"{', '.join(kinds[:-1])} and {kinds[-1]}"
        raise LlavaError(f"{name} is of type {part.model_type!r}; this model computes {computed} alone")


def square_sizes(vision: Any) -> None:
    """Makes the sides of crops and patches one number each, where a tower's configuration gives height and width.

    Raises LlavaError unless they are squares.
    """
    for name in ("image_size", "patch_size"):
        size = getattr(vision, name)
        if isinstance(size, int):
            continue
        if len(set(size)) != 1:
            raise LlavaError(f"the tower's {name} must be of a square; found {' x '.join(map(str, size))}")
        setattr(vision, name, size[0])


def settle_tower(vision: Any) -> None:
    """Makes a tower's configuration what is used of it: without SigLIP's pooling head, without stages of a backbone.

    Raises LlavaError unless crops and patches are squares.
    """
    square_sizes(vision)
    if vision.model_type == "siglip_vision_model":
        vision.vision_use_head = False
    if "stage_names" in vision.to_dict():  # DINOv2 names a stage for each layer that it was built with
        vision.stage_names = ["stem", *(f"stage{layer}" for layer in range(1, vision.num_hidden_layers + 1))]
        vision.set_output_features_output_indices(out_features=None, out_indices=None)
