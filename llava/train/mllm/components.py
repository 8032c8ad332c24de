"""The MLLM's parts that train separately, by the names of their parameters, at the rates of the recipe."""

from torch import nn

from llava.mllm.parts import PREFIXES, UNUSED
from llava.train.loop.components import ADAPTERS, Component, parts_of
from llava.train.recipe.schema import ComponentRecipe, Recipe


def split_components(model: nn.Module, recipe: Recipe) -> list[Component]:
    """The model's components, every parameter in exactly one; those that the model lacks are left out.

    The adapters of a component with LoRA are a component of their own, `language_model_lora`, and train in its stead.
    Raises RuntimeError, see parts_of.
    """
    members = {}
    for part, parameters in parts_of(model, PREFIXES).items():
        members[part] = {name: parameter for name, parameter in parameters.items() if ".lora_" not in name}
        members[part + ADAPTERS] = {name: parameter for name, parameter in parameters.items() if ".lora_" in name}
    return [_component(recipe, name, parameters) for name, parameters in members.items() if parameters]


def _component(recipe: Recipe, name: str, parameters: dict[str, nn.Parameter]) -> Component:
    component: ComponentRecipe = getattr(recipe.components, name.removesuffix(ADAPTERS))
    rates = component if recipe.lr_groups == "components" else ComponentRecipe(component.trained)
    through_adapters = getattr(component, "lora", False) and not name.endswith(ADAPTERS)
    return Component(
        name,
        parameters,
        component.trained and not through_adapters,
        rates.lr if rates.lr is not None else recipe.optim.lr,
        rates.weight_decay if rates.weight_decay is not None else recipe.optim.weight_decay,
        unused=frozenset(parameter for parameter in parameters if parameter.startswith(UNUSED)),
    )
