"""Checkpoints with LoRA adapters beside the weights (llava/train/mllm/lora.py): loaded with them, merged or not.

CHECKPOINT/                a complete checkpoint: the base of the adapters, and the parts that were trained in full
CHECKPOINT/adapter/        adapter_config.json, adapter_model.safetensors, as peft writes them
"""

import warnings
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from llava.constants import ADAPTER_FOLDER
from llava.errors import LlavaError
from llava.mllm.modeling import LlavaOVManagerForConditionalGeneration

ADAPTER_WEIGHTS = "adapter_model.safetensors"
PEFT_PREFIX = "base_model.model."  # of every name in a file of adapters: peft's own wrapper, which is not used here


def load_model(folder: str | Path, *, merge: bool = True, **kwargs) -> tuple:
    """(model, loading_info) as from_pretrained gives them, with the folder's adapters, if it has any.

    merge: the adapters are added to the weights, and the model is as one that never had any; else they stay apart.
    Raises LlavaError for adapters that are incomplete, do not fit the model, or need peft where it is not installed.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*holds LoRA adapters")
        model, loading = LlavaOVManagerForConditionalGeneration.from_pretrained(
            folder, output_loading_info=True, **kwargs
        )
    if (Path(folder) / ADAPTER_FOLDER).is_dir():
        apply_adapter(model, Path(folder), merge)
    return model, loading


def apply_adapter(model: LlavaOVManagerForConditionalGeneration, folder: Path, merge: bool) -> None:
    """Puts the adapters of a checkpoint folder into its model, which was loaded without them; raises as load_model."""
    try:
        from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict
        from peft.tuners.lora import LoraLayer
    except ImportError:
        raise LlavaError(
            f"{folder} has LoRA adapters, which need the package peft: pip install peft, or merge them once where it "
            f"is installed: llava convert merge-lora {folder} --out DIR"
        ) from None
    adapter = folder / ADAPTER_FOLDER
    try:
        config = LoraConfig.from_pretrained(str(adapter), local_files_only=True)
        weights = load_file(adapter / ADAPTER_WEIGHTS)
    except (OSError, ValueError, TypeError, SafetensorError) as error:
        raise LlavaError(f"{adapter}: not readable as LoRA adapters ({str(error).strip().splitlines()[0]})") from None
    if not isinstance(config, LoraConfig):
        raise LlavaError(f"{adapter}: adapters of type {config.peft_type}; expected LORA")
    inject_adapter_in_model(config, model)
    expected = {name: tuple(tensor.shape) for name, tensor in adapter_weights(model, model.state_dict()).items()}
    saved = {name.removeprefix(PEFT_PREFIX): tensor for name, tensor in weights.items()}
    found = {name: tuple(tensor.shape) for name, tensor in saved.items()}
    if expected != found:
        differing = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        name = differing[0]
        raise LlavaError(
            f"{adapter}: {len(differing)} adapter weights do not fit the model, first {name}: "
            f"{found.get(name, 'absent')} in the file, {expected.get(name, 'absent')} in the model"
        )
    set_peft_model_state_dict(model, saved)
    model.eval()  # as from_pretrained leaves it: the adapters' dropout is new
    if merge:
        for name, layer in [(name, module) for name, module in model.named_modules() if isinstance(module, LoraLayer)]:
            layer.merge()
            model.set_submodule(name, layer.get_base_layer())
        del model.peft_config


def adapter_weights(model, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The adapters out of a model's state, by peft's names without its prefix."""
    from peft import get_peft_model_state_dict

    return get_peft_model_state_dict(model, state_dict=weights, save_embedding_layers=False)
