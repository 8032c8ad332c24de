"""The published models' key lists, of the real sizes and without their data, map one to one onto this model."""

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM, SiglipVisionConfig, SiglipVisionModel

from llava.checkpoint.compose import expected_shapes
from llava.checkpoint.match import match_keys
from llava.checkpoint.shards import TensorInfo
from llava.convert.from_released import released_source
from llava.mllm import LlavaOVManagerConfig, LlavaOVManagerForConditionalGeneration

SHARED = {
    "hidden_act": "silu",
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "rope_scaling": None,
    "sliding_window": 131072,
    "use_sliding_window": False,
}
NAMES = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
    *("vocab_size", "tie_word_embeddings"),
)
SIZES = {
    "0.5b": (896, 4864, 24, 14, 2, 151936, True),
    "7b": (3584, 18944, 28, 28, 4, 152064, False),
    "72b": (8192, 29568, 80, 64, 8, 152064, False),
}
VISION = {
    "mm_vision_tower": "google/siglip-so400m-patch14-384",
    "mm_hidden_size": 1152,
    "mm_projector_type": "mlp2x_gelu",
    "mm_patch_merge_type": "spatial_unpad",
    "image_aspect_ratio": "anyres_max_9",
    "image_grid_pinpoints": [[384 * w, 384 * h] for w in range(1, 7) for h in range(1, 7)],
}
ORIGINAL = {
    "model_type": "llava",
    "architectures": ["LlavaQwenForCausalLM"],
    "mm_newline_position": "one_token",
    "mm_spatial_pool_mode": "bilinear",
    "mm_resampler_type": None,
}
MANAGED = {
    "model_type": "llava_qwen_manager",
    "mm_manager_type": "static_zerouni",
    "mm_manager_grid_type": "all",
    "mm_manager_residual": True,
    "mm_manager_select_layer_index_list": list(range(13, 26)),
    "mm_manager_index_list": [0, 4, 8, 12, 16, 20],
}


def real_shapes(size: str, managers: bool) -> tuple[dict, dict]:
    """(fields of the language model, {released name: shape}), from transformers' own classes on the meta device."""
    text = SHARED | dict(zip(NAMES, SIZES[size]))
    width = text["hidden_size"]
    with torch.device("meta"):
        language_model = Qwen2ForCausalLM(Qwen2Config(**text)).state_dict()
        sizes = {"hidden_size": 1152, "intermediate_size": 4304, "num_attention_heads": 16}
        tower = SiglipVisionModel(
            SiglipVisionConfig(**sizes, num_hidden_layers=26, image_size=384, patch_size=14, vision_use_head=False)
        ).state_dict()
    if text["tie_word_embeddings"]:
        del language_model["lm_head.weight"]
    prefix = "model.vision_tower.vision_tower.vision_model."
    shapes = {name: tensor.shape for name, tensor in language_model.items()}
    shapes |= {prefix + name: tensor.shape for name, tensor in tower.items()}
    shapes |= {"model.mm_projector.0.weight": (width, 1152), "model.mm_projector.2.weight": (width, width)}
    shapes |= {"model.mm_projector.0.bias": (width,), "model.mm_projector.2.bias": (width,)}
    shapes["model.image_newline"] = (width,)
    if managers:
        shapes["model.manager_layer_embedding"] = (13, width)
        shapes |= {f"model.manager.{k}.layer_scores": (1, 12 if k == 0 else 13, 1, width) for k in range(6)}
    return text, shapes


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("managers", [False, True])
def test_every_key_has_its_place(size, managers, monkeypatch):
    text, shapes = real_shapes(size, managers)
    infos = {name: TensorInfo(tuple(shape), torch.bfloat16) for name, shape in shapes.items()}
    monkeypatch.setattr("llava.checkpoint.match.tensor_infos", lambda path: infos)
    config = json.loads(json.dumps({**text, **VISION, **(MANAGED if managers else ORIGINAL)}))
    source = released_source(size, Path("x"), config, None, None)
    with torch.device("meta"):
        model = LlavaOVManagerForConditionalGeneration(
            LlavaOVManagerConfig(
                vision_config=source.vision, text_config=source.text, fusion=source.fusion, tiling=source.tiling
            )
        )
    match = match_keys(source.parts, expected_shapes(model), source.may_be_new)
    assert match.faults == match.ignored == {}
    assert match.new == []
    assert Counter(name for _, name in match.mapped.values()) == Counter(shapes.keys())
    saved = {name for name in model.state_dict() if not (name == "lm_head.weight" and text["tie_word_embeddings"])}
    assert match.mapped.keys() == saved
    if size == "0.5b":  # the paper's 893.62 M and 893.70 M, and the newline
        total = sum(torch.Size(shape).numel() for shape in shapes.values())
        assert total == 893_617_312 + 896 + (80_640 if managers else 0)
    assert source.tiling.newline_after_one_crop is not managers
    assert source.text.rope_parameters["rope_theta"] == 1e6
    assert source.text.sliding_window is None


def test_a_tower_saved_with_all_27_layers_loses_the_last(monkeypatch):
    text, shapes = real_shapes("0.5b", managers=False)
    last = {name.replace("layers.25.", "layers.26."): shape for name, shape in shapes.items() if "layers.25." in name}
    infos = {name: TensorInfo(tuple(shape), torch.float16) for name, shape in (shapes | last).items()}
    monkeypatch.setattr("llava.checkpoint.match.tensor_infos", lambda path: infos)
    source = released_source("x", Path("x"), {**text, **VISION, **ORIGINAL}, None, None)
    assert source.vision.num_hidden_layers == 26
