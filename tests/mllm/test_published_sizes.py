"""Parameters at the published sizes, on the meta device, against literal numbers and a formula written by hand.

Sizes are those of config.json of the models that are named. SigLIP2's pooling head, another 15,238,352, is left out: it
is no part of the tower here.
"""

import pytest
import torch
from transformers import CLIPVisionConfig, Dinov2Config, Qwen2Config, Qwen3Config, SiglipVisionConfig

from llava.mllm import LlavaOVManagerConfig, LlavaOVManagerForConditionalGeneration
from llava.mllm.parts import PREFIXES

# (transformers' class, pixels and patch, width, layers, heads, MLP's width, parameters)
TOWERS = {
    "openai/clip-vit-large-patch14-336": (CLIPVisionConfig, 336, 14, 1024, 24, 16, 4096, 303_507_456),
    "google/siglip2-so400m-patch14-384": (SiglipVisionConfig, 384, 14, 1152, 27, 16, 4304, 412_987_248),
    "facebook/dinov2-small": (Dinov2Config, 518, 14, 384, 12, 6, 1536, 22_056_576),
    "facebook/dinov2-base": (Dinov2Config, 518, 14, 768, 12, 12, 3072, 86_580_480),
    "facebook/dinov2-large": (Dinov2Config, 518, 14, 1024, 24, 16, 4096, 304_368_640),
}
# (class, width, layers, heads, of keys, width of one, MLP's width, vocabulary, whether the head is tied, parameters)
TEXTS = {
    "Qwen/Qwen2.5-0.5B": (Qwen2Config, 896, 24, 14, 2, 64, 4864, 151936, True, 494_032_768),
    "Qwen/Qwen2.5-7B": (Qwen2Config, 3584, 28, 28, 4, 128, 18944, 152064, False, 7_615_616_512),
    "Qwen/Qwen3-0.6B": (Qwen3Config, 1024, 28, 16, 8, 128, 3072, 151936, True, 596_049_920),
    "Qwen/Qwen3-8B": (Qwen3Config, 4096, 36, 32, 8, 128, 12288, 151936, False, 8_190_735_360),
}


def tower_by_hand(kind, pixels, patch, width, layers, heads, mlp, _) -> int:
    norm, patches = 2 * width, (pixels // patch) ** 2
    layer = 4 * (width * width + width) + (width * mlp + mlp) + (mlp * width + width) + 2 * norm
    total = 3 * patch * patch * width + patches * width + layers * layer + norm  # patches, positions, layers, last norm
    if kind is SiglipVisionConfig:
        return total + width  # a bias of the patches
    total += 2 * width  # the class token and its position
    if kind is CLIPVisionConfig:
        return total + norm  # in front of the layers
    return total + width + width + layers * 2 * width  # a bias, what stands for masked patches, scales


def text_by_hand(kind, width, layers, heads, key_heads, head, mlp, vocabulary, tied, _) -> int:
    queries, keys = heads * head, key_heads * head
    layer = width * queries + 2 * width * keys + queries * width + 3 * width * mlp + 2 * width
    layer += queries + 2 * keys if kind is Qwen2Config else 2 * head  # biases; norms of queries and of keys
    return layers * layer + width + vocabulary * width * (1 if tied else 2)


def tower_config(kind, pixels, patch, width, layers, heads, mlp, _):
    sizes = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads}
    inside = {"mlp_ratio": mlp // width} if kind is Dinov2Config else {"intermediate_size": mlp}
    return kind(**sizes, **inside, image_size=pixels, patch_size=patch)


def text_config(kind, width, layers, heads, key_heads, head, mlp, vocabulary, tied, _):
    sizes = {"hidden_size": width, "num_hidden_layers": layers, "intermediate_size": mlp, "vocab_size": vocabulary}
    own = {"head_dim": head} if kind is Qwen3Config else {}
    assert kind is Qwen3Config or heads * head == width
    attention = {"num_attention_heads": heads, "num_key_value_heads": key_heads}
    return kind(**sizes, **attention, **own, tie_word_embeddings=tied)


def counts(tower, text) -> dict[str, int]:
    """Parameters of each part of a model without fusion; a tied head counts once."""
    with torch.device("meta"):
        model = LlavaOVManagerForConditionalGeneration(LlavaOVManagerConfig(vision_config=tower, text_config=text))
    found = dict.fromkeys(PREFIXES, 0)
    for name, parameter in model.named_parameters():
        (part,) = [part for part, prefixes in PREFIXES.items() if name.startswith(prefixes)]
        found[part] += parameter.numel()
    return found


@pytest.mark.parametrize("name", TOWERS)
def test_towers(name):
    width, text = TOWERS[name][3], TEXTS["Qwen/Qwen3-0.6B"]
    found = counts(tower_config(*TOWERS[name]), text_config(*text))
    assert found["vision_tower"] == tower_by_hand(*TOWERS[name]) == TOWERS[name][-1]
    assert found["projector"] == (width + 1) * 1024 + (1024 + 1) * 1024
    assert found["newline"] == 1024


@pytest.mark.parametrize("name", TEXTS)
def test_language_models(name):
    found = counts(tower_config(*TOWERS["facebook/dinov2-small"]), text_config(*TEXTS[name]))
    assert found["language_model"] == text_by_hand(*TEXTS[name]) == TEXTS[name][-1]
