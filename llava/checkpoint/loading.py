"""A model from its folder: strictly, with the LoRA adapters beside its weights merged or apart.

CHECKPOINT/                a complete checkpoint: the base of the adapters, and the parts that were trained in full
CHECKPOINT/adapter/        adapter_config.json, adapter_model.safetensors, as peft writes them
"""

import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from llava.checkpoint.folder import ADAPTER_WEIGHTS, has_adapters
from llava.constants import ADAPTER_FOLDER
from llava.errors import LlavaError
from llava.mllm.modeling import LlavaOVManagerForConditionalGeneration
from llava.two_tower.modeling import TwoTowerForTask

PEFT_PREFIX = "base_model.model."  # of every name in a file of adapters: peft's own wrapper, which is not used here
BASE = ".base_layer."  # what peft puts into the name of a weight that an adapter stands beside


def load_model(
    folder: str | Path, *, merge: bool = True, may_be_new: tuple[str, ...] = (), **kwargs: Any
) -> LlavaOVManagerForConditionalGeneration:
    """Loads the model of a folder, with its adapters if it has any; every parameter must be there, and no other.

    Args:
        folder: A checkpoint folder of this model.
        merge: Whether the adapters are added to the weights, and the model is as one that never had any; else they stay
            apart.
        may_be_new: Beginnings of names of parameters that the weights need not have; they start as in a new model.
        **kwargs: As for `from_pretrained`, among them `config`, `dtype` and `attn_implementation`.

    Returns:
        The model, in evaluation mode.

    Raises:
        LlavaError: Parameters are missing, unknown or of another shape; adapters are incomplete, do not fit the model,
            or need peft where it is not installed.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*holds LoRA adapters")
        model, loading = LlavaOVManagerForConditionalGeneration.from_pretrained(
            folder, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs
        )
    _check_loaded(folder, loading, may_be_new)
    if has_adapters(folder):
        apply_adapter(model, Path(folder), merge)
    return model


def load_two_tower(folder: str | Path, **kwargs: Any) -> TwoTowerForTask:
    """Loads the two-tower model of a folder with the heads of its task; every parameter must be there, and no other.

    Args:
        folder: A checkpoint folder of this family.
        **kwargs: As for `from_pretrained`.

    Returns:
        The model, in evaluation mode.

    Raises:
        LlavaError: Parameters are missing, unknown or of another shape, as of another bridge.
    """
    loaded: Any = TwoTowerForTask.from_pretrained(
        folder, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs
    )
    model, loading = loaded
    _check_loaded(folder, loading, ())
    return model


def _check_loaded(folder: str | Path, loading: dict, may_be_new: tuple[str, ...]) -> None:
    """Raises LlavaError for the first of the faults in a loading_info of from_pretrained."""
    if any(BASE in name for name in loading["unexpected_keys"]):
        raise LlavaError(
            f"{folder}: was written in the midst of a run with LoRA, which alone can go on from it; start from the "
            "folder that the run ends in"
        )
    missing = [name for name in loading["missing_keys"] if not name.startswith(may_be_new)]
    mismatched = [
        f"{name}: {tuple(saved)} in the file, {tuple(expected)} in the model"
        for name, saved, expected in loading["mismatched_keys"]
    ]
    for fault, names in (
        ("missing", missing),
        ("unexpected", loading["unexpected_keys"]),
        ("mismatched", mismatched),
    ):
        if names:
            raise LlavaError(f"{folder}: {fault} in the weights: {len(names)} parameters, first {min(names)}")


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
    shapes = {name: tuple(tensor.shape) for name, tensor in saved.items()}
    if expected != shapes:
        differing = sorted(name for name in expected.keys() | shapes.keys() if expected.get(name) != shapes.get(name))
        name = differing[0]
        raise LlavaError(
            f"{adapter}: {len(differing)} adapter weights do not fit the model, first {name}: "
            f"{shapes.get(name, 'absent')} in the file, {expected.get(name, 'absent')} in the model"
        )
    set_peft_model_state_dict(model, saved)
    model.eval()  # as from_pretrained leaves it: the adapters' dropout is new
    if merge:
        for name, layer in [(name, module) for name, module in model.named_modules() if isinstance(module, LoraLayer)]:
            layer.merge()
            model.set_submodule(name, layer.get_base_layer())
        del model.peft_config


def adapter_weights(model: torch.nn.Module, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The adapters out of a model's state, by peft's names without its prefix."""
    from peft import get_peft_model_state_dict

    return get_peft_model_state_dict(model, state_dict=weights, save_embedding_layers=False)
