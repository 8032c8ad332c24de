"""Small towers and language models of every other kind than the usual SigLIP and Qwen2, and pairs of them."""

from transformers import (
    CLIPVisionConfig,
    Dinov2Config,
    Dinov2WithRegistersConfig,
    Qwen2Config,
    Qwen3Config,
    SiglipVisionConfig,
)

_SIZES = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2}
TOWERS = {
    "siglip2": SiglipVisionConfig(**_SIZES, intermediate_size=40, image_size=64, patch_size=16, vision_use_head=False),
    "clip": CLIPVisionConfig(**_SIZES, intermediate_size=40, image_size=50, patch_size=16),
    "dinov2": Dinov2Config(**_SIZES, mlp_ratio=2, image_size=42, patch_size=14),
    "dinov2_giant": Dinov2Config(**_SIZES, image_size=56, patch_size=14, use_swiglu_ffn=True),
    "registers": Dinov2WithRegistersConfig(**_SIZES, mlp_ratio=2, image_size=48, patch_size=12, num_register_tokens=2),
}
# (class, fields that its published folders have and Qwen2's have not, or otherwise)
LANGUAGE_MODELS = {
    "qwen2.5": (Qwen2Config, {"use_sliding_window": False, "sliding_window": 32768, "max_window_layers": 6}),
    "qwen3": (Qwen3Config, {"head_dim": 8, "attention_bias": False}),
}
PAIRS = {
    "siglip2 qwen3": ("siglip2", "qwen3"),
    "clip qwen2.5": ("clip", "qwen2.5"),
    "dinov2 qwen3": ("dinov2", "qwen3"),
    "dinov2_giant qwen2.5": ("dinov2_giant", "qwen2.5"),
    "registers qwen3": ("registers", "qwen3"),
}
