"""LoRA, DoRA and QLoRA through peft: adapters on the linear layers of chosen components, and their way out.

The adapters are put into the model as it is, so that it stays the class that everything else knows. What is saved has
two parts: the model's own weights under their own names, and the adapters in peft's format.
"""

import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from llava.checkpoint.folder import ADAPTER_WEIGHTS
from llava.checkpoint.loading import BASE, PEFT_PREFIX, adapter_weights
from llava.constants import ADAPTER_FOLDER
from llava.errors import LlavaError
from llava.train.recipe.schema import Recipe

MODULES = {"vision_tower": "model.vision_tower", "language_model": "model.language_model"}
QUANTIZED = "Params4bit"  # bitsandbytes' class, which is imported only when it is used
# Numbers with one scale; on a CPU bitsandbytes 0.50 takes the wrong one where a block ends within a row.
QUANTIZED_BLOCK = 64


def adapted_components(recipe: Recipe) -> list[str]:
    """The components that train through adapters."""
    names = [field.name for field in fields(recipe.components)]
    return [name for name in names if getattr(getattr(recipe.components, name), "lora", False)]


def attach_adapters(model: nn.Module, recipe: Recipe, compute_dtype: torch.dtype) -> None:
    """Puts adapters beside the linear layers that the recipe names; B starts at zero, so that the model is unchanged.

    With `lora.base: nf4` the components' linear layers are quantised first, and compute in compute_dtype. The head,
    tied or not, has no adapter.
    Raises LlavaError for a name in lora.target_modules that is no linear layer of these components.
    """
    components = adapted_components(recipe)
    if not components:
        return
    from peft import LoraConfig, inject_adapter_in_model

    lora = recipe.lora
    layers = dict(_linear_layers(model, components))
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        use_dora=lora.dora,
        target_modules=_target_pattern(list(layers), components, lora.target_modules),
    )
    on_meta = model.device.type == "meta"
    if lora.base == "nf4" and not on_meta:
        _quantize(model, layers, compute_dtype)
        model.is_loaded_in_4bit = True  # peft reads it to choose its 4-bit layer; transformers' Trainer must not
    inject_adapter_in_model(config, model, low_cpu_mem_usage=on_meta)
    vars(model).pop("is_loaded_in_4bit", None)


def _linear_layers(model: nn.Module, components: list[str]) -> Iterator[tuple[str, nn.Linear]]:
    for component in components:
        for name, module in model.get_submodule(MODULES[component]).named_modules():
            if isinstance(module, nn.Linear):
                yield f"{MODULES[component]}.{name}", module


def _target_pattern(layers: list[str], components: list[str], target_modules: list[str] | None) -> str:
    """A regular expression that peft matches against whole names."""
    names = list(dict.fromkeys(layer.rpartition(".")[2] for layer in layers))
    unknown = [name for name in target_modules or () if name not in names]
    if unknown:
        raise LlavaError(
            f"lora.target_modules: {' and '.join(components)} have no linear layer {', '.join(unknown)}; "
            f"they have {', '.join(names)}"
        )
    modules, chosen = (MODULES[component] for component in components), target_modules or names
    return rf"({'|'.join(map(re.escape, modules))})\.(.+\.)?({'|'.join(map(re.escape, chosen))})"


def _quantize(model: nn.Module, layers: dict[str, nn.Linear], compute_dtype: torch.dtype) -> None:
    """Replaces linear layers by bitsandbytes' of 4 bits (NF4), but for those whose rows are no whole blocks.

    The blocks' scales stay in float32, so that a weight which is saved and quantised again has the same 4 bits.
    """
    from bitsandbytes.nn import Linear4bit, Params4bit

    for name, linear in layers.items():
        if linear.in_features % QUANTIZED_BLOCK:
            continue
        with torch.device("meta"):
            quantized = Linear4bit(
                linear.in_features,
                linear.out_features,
                bias=linear.bias is not None,
                compute_dtype=compute_dtype,
                compress_statistics=False,
                quant_type="nf4",
            )
        weight = Params4bit(linear.weight.detach(), requires_grad=False, compress_statistics=False, quant_type="nf4")
        quantized.weight, quantized.bias = weight.to(linear.weight.device), linear.bias
        quantized.weight.module = quantized
        model.set_submodule(name, quantized)


def split_weights(
    model: nn.Module, weights: dict[str, torch.Tensor]
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor] | None]:
    """(weights under the names of a model without adapters, adapters as peft names them in a file, or None).

    weights: the gathered state of a model after attach_adapters; one without adapters passes through. Weights of 4 bits
    become what they stand for, in the dtype that they had.
    """
    if not hasattr(model, "peft_config"):
        return weights, None
    quantized = {name: weight for name, weight in model.named_parameters() if type(weight).__name__ == QUANTIZED}
    base = {}
    for name, tensor in weights.items():
        if ".lora_" in name or name.rpartition(".weight.")[0] + ".weight" in quantized:  # the latter: scales and tables
            continue
        base[name.replace(BASE, ".")] = _dequantized(quantized[name], tensor) if name in quantized else tensor
    return base, adapter_weights(model, weights)


def _dequantized(weight: nn.Parameter, packed: torch.Tensor) -> torch.Tensor:
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(packed.to(weight.device), weight.quant_state).cpu()


def write_adapter(model: nn.Module, adapter: dict[str, torch.Tensor], folder: Path) -> None:
    """Writes `adapter/` into a checkpoint folder: adapter_config.json and adapter_model.safetensors, as peft does."""
    target = folder / ADAPTER_FOLDER
    config = model.peft_config["default"]
    trains, config.inference_mode = config.inference_mode, True
    config.save_pretrained(str(target))
    config.inference_mode = trains
    named = {PEFT_PREFIX + name: tensor.detach().cpu().contiguous() for name, tensor in adapter.items()}
    save_file(named, target / ADAPTER_WEIGHTS, metadata={"format": "pt"})
