"""In which precision a stage trains, and which weights are rounded to it."""

import torch
from torch import nn

from llava.errors import LlavaError
from llava.train.family import StageRecipe


def trains_in_bf16(recipe: StageRecipe) -> bool:
    """Whether the forward pass runs in bfloat16: as the recipe says, or on every GPU that has it."""
    if recipe.run.precision != "auto":
        return recipe.run.precision == "bf16"
    return torch.cuda.is_available() and _gpu_has_bf16()


def check_precision(recipe: StageRecipe, device: str) -> None:
    """Raises LlavaError where the recipe names bf16 and the GPU, whose name is `device`, would emulate it, slowly."""
    if recipe.run.precision == "bf16" and torch.cuda.is_available() and not _gpu_has_bf16():
        raise LlavaError(f"run.precision bf16: {device} has no bfloat16; auto and fp32 train in float32 there")


def _gpu_has_bf16() -> bool:
    return torch.cuda.is_bf16_supported(including_emulation=False)


def lower_precision(model: nn.Module, recipe: StageRecipe) -> None:
    """Rounds to bfloat16, where training runs in it, what needs no more: frozen weights, and all under DeepSpeed.

    DeepSpeed would do so itself, but only once every rank holds the weights in float32.
    """
    if not trains_in_bf16(recipe):
        return
    for parameter in model.parameters():
        if parameter.dtype == torch.float32 and (recipe.run.deepspeed is not None or not parameter.requires_grad):
            parameter.data = parameter.data.to(torch.bfloat16)
