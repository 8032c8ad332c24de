"""What the authors' two-tower code (LooperXX/ManagerTower) calls things, and its configuration in our terms.

Its three models (MT, BT, METER) share most names. Some of its tensors are several of ours: pieces() takes them apart,
and a piece has a name of its own, the tensor's with `#` and which.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from transformers import CLIPVisionConfig, RobertaConfig

from llava.checkpoint.match import Rules
from llava.errors import LlavaError
from llava.two_tower.configuration import TwoTowerConfig
from llava.two_tower.tasks import TASKS

BRIDGES = {"MT": "manager", "BT": "bridge_tower", "METER": "meter"}
MANAGERS = {"SAUE": "saum", "AAUE": "aaum"}
# Settings that change what the model computes, and their values that this model has.
SUPPORTED = {"vit_layernorm_shared": True, "vit_remove_last": False, "task_head_layers": 2}
SUPPORTED_OF_MANAGERS = {"manager_learnable": True, "manager_softmax_temperature_learnable": True}
CLASSIFIERS = {"vqa_classifier": "vqav2", "nlvr2_classifier": "nlvr2", "snli_classifier": "snli_ve"}
TOWER_HEAD_WIDTH = 64  # of RoBERTa's and CLIP's attention heads: numbers of heads stand in no weight

_TEXT_TOWER = (r"text_transformer\.((?:embeddings|encoder)\..+)", r"model.text_tower.\1")
_VISUAL, _IMAGE_TOWER = r"vit_model\.visual\.", "model.image_tower."
_RESBLOCK, _LAYER = _VISUAL + r"transformer\.resblocks\.(\d+)\.", _IMAGE_TOWER + r"encoder.layers.\1."
_BLOCK, _OURS = r"cross_modal_(text|image)_layers\.(\d+)\.", r"model.cross_modal.layers.\2.\1."
_MANAGER = r"cross_modal_(text|image)_manager_tower\.(\d+)\.manager_layer\."
_BRIDGE = r"model.cross_modal.layers.\2.\1_bridge."
_RENAMES = (
    _TEXT_TOWER,
    (_VISUAL + "class_embedding", _IMAGE_TOWER + "embeddings.class_embedding"),
    (_VISUAL + "positional_embedding", _IMAGE_TOWER + "embeddings.position_embedding.weight"),
    (_VISUAL + r"conv1\.weight", _IMAGE_TOWER + "embeddings.patch_embedding.weight"),
    (_VISUAL + r"ln_pre\.(.+)", _IMAGE_TOWER + r"pre_layrnorm.\1"),
    (_VISUAL + r"ln_post\.(.+)", _IMAGE_TOWER + r"post_layernorm.\1"),
    (_RESBLOCK + r"ln_(\d)\.(.+)", _LAYER + r"layer_norm\2.\3"),
    (_RESBLOCK + r"mlp\.c_fc\.(.+)", _LAYER + r"mlp.fc1.\2"),
    (_RESBLOCK + r"mlp\.c_proj\.(.+)", _LAYER + r"mlp.fc2.\2"),
    (_RESBLOCK + r"attn\.in_proj_(weight|bias)#(.)", _LAYER + r"self_attn.\3_proj.\2"),
    (_RESBLOCK + r"attn\.out_proj\.(.+)", _LAYER + r"self_attn.out_proj.\2"),
    (r"cross_modal_(text|image)_transform\.(.+)", r"model.\1_projection.\2"),
    (r"(text|image)_gate\.(.+)", r"model.\1_gate.gate.\2"),
    (r"token_type_embeddings\.weight", "model.type_embedding.weight"),
    (r"layer_embeddings_(text|image)\.weight", r"model.\1_layer_embedding.weight"),
    (_BLOCK + r"attention\.self\.(query|key|value)\.(.+)", _OURS + r"self_attention.\3.\4"),
    (_BLOCK + r"attention\.output\.dense\.(.+)", _OURS + r"self_attention.output.\3"),
    (_BLOCK + r"attention\.output\.LayerNorm\.(.+)", _OURS + r"self_attention.norm.\3"),
    (_BLOCK + r"crossattention\.self\.(query|key|value)\.(.+)", _OURS + r"cross_attention.\3.\4"),
    (_BLOCK + r"crossattention\.output\.dense\.(.+)", _OURS + r"cross_attention.output.\3"),
    (_BLOCK + r"crossattention\.output\.LayerNorm\.(.+)", _OURS + r"cross_attention.norm.\3"),
    (_BLOCK + r"intermediate\.dense\.(.+)", _OURS + r"feed_in.\3"),
    (_BLOCK + r"output\.dense\.(.+)", _OURS + r"feed_out.\3"),
    (_BLOCK + r"output\.LayerNorm\.(.+)", _OURS + r"norm.\3"),
    (r"cross_modal_(text|image)_pooler\.dense\.(.+)", r"model.\1_pooler.\2"),
    (_MANAGER + "layer_scores#experts", _BRIDGE + "scores"),
    (_MANAGER + "(?:layer_scores#previous|layer_scores_cross)", _BRIDGE + "previous_weight"),
    (_MANAGER + "softmax_temperature", _BRIDGE + "temperature"),
    (_MANAGER + r"linear_controller\.(.+)", _BRIDGE + r"controller.\3"),
    (_MANAGER + r"fusion_attention\.q_proj\.(.+)", _BRIDGE + r"fused_query.query_proj.\3"),
    (_MANAGER + r"fusion_attention\.k_proj\.(.+)", _BRIDGE + r"fused_query.key_proj.\3"),
    (_MANAGER + r"extra_query_LayerNorm\.(.+)", _BRIDGE + r"fused_query.norm.\3"),
    (_MANAGER + r"LayerNorm\.\d+\.(.+)#previous", _BRIDGE + r"previous_norms.0.\3"),
    (_MANAGER + r"LayerNorm\.(\d+)\.(.+)", _BRIDGE + r"norms.\3.\4"),
    (r"cross_modal_(text|image)_layernorm\.(.+)", r"model.cross_modal.layers.0.\1_bridge.norm.\2"),
)
_HEADS = {
    "mlm": (
        (r"mlm_score\.transform\.dense\.(.+)", r"heads.mlm.dense.\1"),
        (r"mlm_score\.transform\.LayerNorm\.(.+)", r"heads.mlm.norm.\1"),
        (r"mlm_score\.decoder\.weight", "heads.mlm.decoder.weight"),
        (r"mlm_score\.bias", "heads.mlm.decoder.bias"),
    ),
    "itm": ((r"itm_score\.fc\.(.+)", r"heads.itm.\1"),),
    "itc": (
        (r"cross_modal_itc_(text|image)_head\.fc\.(.+)", r"heads.itc.\1.\2"),
        ("temperature", "heads.itc.temperature"),
    ),
}
_IGNORED = (
    (r"text_transformer\.pooler\..+", "RoBERTa's pooler"),
    (r"(?:text_transformer|vit_model\.visual)\.embeddings\.(?:position|token_type)_ids", "position buffer"),
    (r"vit_model\.(?:positional_embedding|ln_final\..+)", "CLIP's text side"),
    (_MANAGER + "softmax_temperature_cross", "never used"),
    (r"(?:rank_output|itc_cross_modal_head)\..+", "of an objective that is not there"),
)
OTHER_TASK = "head of another task"


def reference_rules(config: TwoTowerConfig) -> Rules:
    """Its names, and those of pieces(), to those of TwoTowerForTask(config); heads of other tasks are ignored."""
    links = tuple(  # layer l's link has the number l - 2: layer 1 has a LayerNorm of another name
        (
            rf"cross_modal_(text|image)_link_tower\.{number}\.LayerNorm\.(.+)",
            rf"model.cross_modal.layers.{number + 1}.\1_bridge.norm.\2",
        )
        for number in range(config.cross_modal_layers - 1)
    )
    heads = dict(_HEADS)
    for name, task in CLASSIFIERS.items():
        places = {0: 1, 1: 2, 3: 4}  # in its Sequential and in ours, which begins with the dropout
        renames = tuple((rf"{name}\.{its}\.(.+)", rf"heads.classifier.{ours}.\1") for its, ours in places.items())
        heads["classifier" if task == config.task else name] = renames
    used = TASKS[config.task].heads
    ignored = [(pattern, OTHER_TASK) for head, renames in heads.items() if head not in used for pattern, _ in renames]
    taken = [rename for head in used for rename in heads[head]]
    return Rules((*_RENAMES, *links, *taken), (*_IGNORED, *ignored))


def pieces(config: TwoTowerConfig) -> Callable[[str, torch.Tensor], dict[str, torch.Tensor]]:
    """A function: (its name, tensor) to {name of a piece: tensor in our shape}."""
    numbers = {tower: config.num_kept(tower) for tower in ("text", "image")}

    def apart(name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
        if ".attn.in_proj_" in name:
            return {f"{name}#{which}": block for which, block in zip("qkv", tensor.chunk(3))}
        if name == "temperature":
            return {name: tensor.reshape(1)}
        if name == "token_type_embeddings.weight":  # a checkpoint of NLVR2 has a row for a second image
            return {name: tensor[: config.num_types]}
        manager = re.match(_MANAGER, name)
        if manager is None:
            return {name: tensor}
        if name.endswith(".layer_scores_cross"):
            return {name: tensor[0, :, None]}
        number = numbers[manager[1]]
        if name.endswith(".layer_scores"):
            scores = {"experts": tensor[0, :number, None], "previous": tensor[0, number:, None]}
            return {f"{name}#{which}": piece for which, piece in scores.items() if len(piece)}
        norm = re.match(_MANAGER + r"LayerNorm\.(\d+)\.", name)
        return {f"{name}#previous" if norm is not None and int(norm[3]) == number else name: tensor}

    return apart


def config_fields(reference: Mapping[str, Any], task: str) -> dict[str, Any]:
    """Fields of TwoTowerConfig for a task from the reference's configuration, without the towers'.

    Raises LlavaError for a setting that this model does not have.
    """
    model_type, manager_type = reference["model_type"], reference.get("manager_type")
    if model_type not in BRIDGES:
        raise LlavaError(f"unknown model_type {model_type!r}; known: {', '.join(BRIDGES)}")
    fields: dict[str, Any] = {"bridge": BRIDGES[model_type]}
    supported = SUPPORTED | (SUPPORTED_OF_MANAGERS if fields["bridge"] == "manager" else {})
    for key, value in supported.items():
        if reference.get(key, value) != value:
            raise LlavaError(f"{key} {reference[key]!r} is not supported, only {value!r}")
    if fields["bridge"] == "manager":
        if manager_type not in MANAGERS:
            raise LlavaError(f"unknown manager_type {manager_type!r}; known: {', '.join(MANAGERS)}")
        fields |= {
            "manager_kind": MANAGERS[manager_type],
            "query": "fused",
            "weight": reference["manager_weight_type"],
            "text_layers": reference["managed_layers_text"],
            "image_layers": reference["managed_layers_image"],
        }
    width = reference["hidden_size"]
    return fields | {
        "task": task,
        "cross_modal_layers": reference["num_layers"],
        "hidden_size": width,
        "num_attention_heads": reference["num_heads"],
        "intermediate_size": width * reference["mlp_ratio"],
        "hidden_dropout_prob": reference["drop_rate"],
        "attention_probs_dropout_prob": reference["drop_rate"],
        "mask_padding": False,
        "gated_fusion": fields["bridge"] == "meter" and bool(reference.get("meter_fusion")),
        "num_answers": reference["vqav2_label_size"],
        "head_width": 1 if fields["bridge"] == "meter" else reference.get("head_hidden_scale", 1),
        "head_dropout": reference.get("nlvr2_drop_rate", 0.0) if task == "nlvr2" else 0.0,
        "itc_width": reference.get("contrastive_hidden_size", 256),
        "itc_temperature": reference.get("temperature", 0.07),
    }


def text_config(shapes: Mapping[str, tuple[int, ...]]) -> RobertaConfig:
    """The text tower's sizes, from {its name: shape}; its number of heads as in RoBERTa."""
    prefix = "text_transformer."
    vocabulary, width = shapes[f"{prefix}embeddings.word_embeddings.weight"]
    return RobertaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        num_hidden_layers=_count(shapes, prefix + r"encoder\.layer\.(\d+)\."),
        num_attention_heads=max(width // TOWER_HEAD_WIDTH, 1),
        intermediate_size=shapes[f"{prefix}encoder.layer.0.intermediate.dense.weight"][0],
        max_position_embeddings=shapes[f"{prefix}embeddings.position_embeddings.weight"][0],
        type_vocab_size=shapes[f"{prefix}embeddings.token_type_embeddings.weight"][0],
        layer_norm_eps=1e-5,
    )


def vision_config(shapes: Mapping[str, tuple[int, ...]]) -> CLIPVisionConfig:
    """The image tower's sizes, from {its name: shape}, for the images that the weights' positions are of."""
    prefix = "vit_model.visual."
    width, _, patch, _ = shapes[f"{prefix}conv1.weight"]
    return CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=shapes[f"{prefix}transformer.resblocks.0.mlp.c_fc.weight"][0],
        num_hidden_layers=_count(shapes, _RESBLOCK),
        num_attention_heads=max(width // TOWER_HEAD_WIDTH, 1),
        patch_size=patch,
        image_size=patch * math.isqrt(shapes[f"{prefix}positional_embedding"][0] - 1),
        hidden_act="quick_gelu",
        layer_norm_eps=1e-5,
    )


def _count(names: Iterable[str], numbered: str) -> int:
    return len({match[1] for name in names if (match := re.match(numbered, name))})
