"""How the repeated layers run while training: which are computed again in the backward pass, and which are compiled."""

import torch
from torch import nn
from transformers import PreTrainedModel

from llava.mllm import LlavaOVManagerForConditionalGeneration
from llava.mllm.recompute import recompute
from llava.train.recipe.schema import LAYERED, Recipe, named_components

BACKEND = "inductor"
# Fields of configurations by which layers that hold no module of their own for it draw random numbers in training.
DROP_RATES = ("attention_dropout", "attention_probs_dropout_prob", "drop_path_rate")


def prepare_layers(model: LlavaOVManagerForConditionalGeneration, recipe: Recipe) -> None:
    """Does what `run.gradient_checkpointing` and `run.compile` ask for, of a model that is frozen where it shall be."""
    compiled = named_components(recipe.run.compile)
    checkpoint(model, named_components(recipe.run.gradient_checkpointing), compiled)
    compile_layers(model, compiled)


def checkpoint(
    model: LlavaOVManagerForConditionalGeneration, components: tuple[str, ...], compiled: tuple[str, ...] = ()
) -> None:
    """Lets the backward pass compute again what these components would keep.

    That is of each layer all but its input, of the projector all but each map. Needs no gradient of the input, so that
    what is in front may be frozen. A frozen tower keeps nothing and is left alone: torch 2.13 cannot compile what is
    checkpointed and has no gradient.

    Args:
        model: frozen where it shall be, with its adapters.
        components: what is computed again.
        compiled: the components whose layers will be compiled. They, and layers that draw random numbers, are computed
            again by torch's own function, which knows how.
    """
    tower_trains = any(parameter.requires_grad for parameter in model.model.vision_tower.parameters())
    for name in LAYERED:
        if name in components and (name != "vision_tower" or tower_trains):
            part = getattr(model.model, name)
            if name in compiled or _draws(part):
                part.activation_checkpointing_enable({"use_reentrant": False})
            else:
                part._set_gradient_checkpointing(enable=True, gradient_checkpointing_func=recompute)
    model.model.recomputes_projector = "projector" in components


def _draws(part: PreTrainedModel) -> bool:
    """Whether something inside the part's layers is random while it trains."""
    dropped = any(isinstance(module, nn.Dropout) and module.p > 0 for module in part.modules())
    return dropped or any(part.config.to_dict().get(rate) for rate in DROP_RATES)


def compile_layers(model: LlavaOVManagerForConditionalGeneration, components: tuple[str, ...]) -> None:
    """Compiles each layer in place, so that parameters keep their names; layers that are alike share their code.

    Sizes are symbols from the start: every batch has others.
    """
    if not components:
        return
    # The layers are compiled one by one, as DDP's own splitting of graphs would; it cannot split checkpointed ones.
    torch._dynamo.config.optimize_ddp = False
    for name in components:
        for layer in layers(model, name):
            layer.compile(dynamic=True, backend=BACKEND)


def layers(model: LlavaOVManagerForConditionalGeneration, component: str) -> nn.ModuleList:
    """The repeated layers of `vision_tower` or `language_model`."""
    return getattr(model.model, component).layers
