"""The naive ways to do what ours does, which bench_train.py measures, and the options of which model is measured."""

import argparse
from functools import partial

import torch

from llava.bench.arms import Side, our_loss
from llava.data.images import normalize
from llava.engine.checks import DTYPE_NAMES
from llava.mllm.features import VisualFeatures
from llava.mllm.modeling import LlavaOVManagerForConditionalGeneration
from llava.mllm.packing import pack
from llava.mllm.visual_input import image_input

NAIVE = ("logits", "eager", "maps", "kept", "torch", "reentrant", "float")


def loss_of_all_logits(model: LlavaOVManagerForConditionalGeneration, batch: dict) -> torch.Tensor:
    """Logits at every position, in float32."""
    return model(**batch, use_cache=False).loss


def loss_of_float_pixels(model: LlavaOVManagerForConditionalGeneration, batch: dict) -> torch.Tensor:
    """The crops normalised before they come to the device, as float32 and four times the bytes."""
    config, pixels = model.config, batch["pixel_values"]
    normalised = normalize(pixels.cpu().numpy(), config.image_mean, config.image_std)
    return our_loss(model, {**batch, "pixel_values": torch.from_numpy(normalised).to(pixels.device)})


def loss_map_by_map(model: LlavaOVManagerForConditionalGeneration, batch: dict) -> torch.Tensor:
    """The tower's states all kept and stacked; every image's every map projected, packed and summed by itself."""
    batch = dict(batch)
    given = image_input(model.config, batch.pop("pixel_values"), batch.pop("image_sizes"), None)
    inner, merge = model.model, model.config.tiling.merge
    last = model.config.vision_config.num_hidden_layers
    states = torch.stack(inner.vision_tower(given.crops.to(model.dtype), list(range(last + 1))))
    newline, managers = inner.image_newline(), inner.fusion
    features, deltas, end = [], [[] for _ in managers.managers], 0
    for layout in given.layouts:
        begin, end = end, end + layout.num_crops
        features.append(pack(inner.multi_modal_projector(states[last, begin:end]), newline, layout, merge))
        maps = []
        for number, layer in enumerate(model.config.fusion.vision_layers):
            projected = inner.multi_modal_projector(states[layer, begin:end]) + managers.layer_embedding[number]
            maps.append(pack(projected, newline, layout, merge))
        for manager, delta in zip(managers.managers, deltas):
            delta.append(sum(scores * map_VD for scores, map_VD in zip(manager.scores, maps)))
    visual = VisualFeatures(pooler_output=features, deepstack_features=deltas)
    return our_loss(model, batch | {"mm_encoder_outputs": {"image": visual}})


def loss_checkpointed_by_torch(
    model: LlavaOVManagerForConditionalGeneration, batch: dict, reentrant: bool
) -> torch.Tensor:
    """Layers computed again by torch's own function. reentrant: as the reference trains, transformers' old default."""
    for part in (model.model.vision_tower, model.model.language_model):
        part.activation_checkpointing_enable({"use_reentrant": reentrant})
    return our_loss(model, batch)


def naive_sides(arm: str, ways: list[str]) -> list[Side]:
    """What our savings are compared with. ways: of NAIVE; `maps` is left out where the arm has no managers."""
    sides = {
        "logits": Side("logits at every position", arm, loss=loss_of_all_logits),
        "eager": Side("eager attention", arm, attention="eager"),
        "maps": Side("managers map by map", arm, loss=loss_map_by_map),
        "kept": Side("nothing checkpointed", arm, checkpointed=False),
        "torch": Side("checkpointed by torch", arm, loss=partial(loss_checkpointed_by_torch, reentrant=False)),
        "reentrant": Side("by torch, reentrant", arm, loss=partial(loss_checkpointed_by_torch, reentrant=True)),
        "float": Side("pixels as float32", arm, loss=loss_of_float_pixels),
    }
    return [sides[way] for way in ways if way != "maps" or "manager" in arm]


def packed_side(arm: str) -> Side:
    """What is compared with the arm where samples of unequal lengths come together."""
    return Side("samples packed", arm, packing=True)


def model_parser(description: str) -> argparse.ArgumentParser:
    """A parser of the options that say which model is measured, and where."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    on_gpu = torch.cuda.is_available()
    parser.add_argument("--device", default="cuda" if on_gpu else "cpu")
    parser.add_argument("--dtype", choices=DTYPE_NAMES, default="bfloat16" if on_gpu else "float32")
    parser.add_argument("--layers", type=int, help="of the tower and of the language model each; default 26 and 24")
    parser.add_argument("--vision_layers", type=int, help="instead of --layers, for the tower")
    parser.add_argument("--text_layers", type=int, help="instead of --layers, for the language model")
    return parser
