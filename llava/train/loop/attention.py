"""Which attention implementation a stage trains with, and whether it can run here."""

import torch

from llava.errors import LlavaError
from llava.mllm.attention import best_attention, check_can_run
from llava.train.family import StageRecipe
from llava.train.loop.precision import trains_in_bf16


def attention_implementation(recipe: StageRecipe) -> str:
    """flash_attention_2 when it is installed and bfloat16 runs on a GPU, else sdpa, unless the recipe names one."""
    if recipe.model.attention != "auto":
        return recipe.model.attention
    return best_attention(torch.cuda.is_available(), trains_in_bf16(recipe))


def check_attention(recipe: StageRecipe) -> None:
    """Raises LlavaError where the recipe names an implementation that cannot run here."""
    try:
        check_can_run(recipe.model.attention, torch.cuda.is_available(), trains_in_bf16(recipe))
    except LlavaError as error:
        raise LlavaError(f"model.attention: {error}") from None
