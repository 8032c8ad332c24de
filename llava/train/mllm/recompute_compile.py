"""How the repeated layers run while training: which are computed again in the backward pass, and which are compiled."""

import torch
from torch import nn

from llava.mllm import LlavaOVManagerForConditionalGeneration
from llava.train.recipe.schema import LAYERED, Recipe, named_components

BACKEND = "inductor"


def prepare_layers(model: LlavaOVManagerForConditionalGeneration, recipe: Recipe) -> None:
    """Does what `run.gradient_checkpointing` and `run.compile` ask for, of a model that is frozen where it shall be."""
    checkpoint(model, named_components(recipe.run.gradient_checkpointing))
    compile_layers(model, named_components(recipe.run.compile))


def checkpoint(model: LlavaOVManagerForConditionalGeneration, components: tuple[str, ...]) -> None:
    """Lets the backward pass compute again what these components would keep.

    That is of each layer all but its input, of the projector all but each map. Needs no gradient of the input, so that
    what is in front may be frozen. A frozen tower keeps nothing and is left alone: torch 2.13 cannot compile what is
    checkpointed and has no gradient.
    """
    tower_trains = any(parameter.requires_grad for parameter in model.model.vision_tower.parameters())
    for name in LAYERED:
        if name in components and (name != "vision_tower" or tower_trains):
            getattr(model.model, name).activation_checkpointing_enable({"use_reentrant": False})
    model.model.recomputes_projector = "projector" in components


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
    part = getattr(model.model, component)
    return part.encoder.layers if component == "vision_tower" else part.layers
