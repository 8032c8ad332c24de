"""The parts of the model that train separately: which parameters belong to each, and at which rate they learn."""

from dataclasses import dataclass

import torch
from torch import nn

from llava.mllm.parts import POST_LAYERNORM, PREFIXES
from llava.text_table import text_table
from llava.train.recipe.schema import ComponentRecipe, Recipe

ADAPTERS = "_lora"  # behind the name of a component whose adapters train in its stead


@dataclass(frozen=True)
class Component:
    """One part of a model with its rates. parameters: {name: parameter}, all of them, frozen or not."""

    name: str
    parameters: dict[str, nn.Parameter]
    trained: bool
    lr: float
    weight_decay: float

    @property
    def num_parameters(self) -> int:
        """Whole parameters, also where ZeRO-3 has cut them."""
        return sum(full_shape(parameter).numel() for parameter in self.parameters.values())

    @property
    def num_bytes(self) -> int:
        """Of them in a checkpoint."""
        return sum(map(saved_bytes, self.parameters.values()))

    @property
    def num_trainable(self) -> int:
        """Of these, what trains."""
        return sum(full_shape(p).numel() for p in self.parameters.values() if p.requires_grad)


def full_shape(parameter: nn.Parameter) -> torch.Size:
    """The parameter's shape before ZeRO-3 partitioned it, or bitsandbytes packed it."""
    quant_state = getattr(parameter, "quant_state", None)
    return quant_state.shape if quant_state is not None else getattr(parameter, "ds_shape", parameter.shape)


def saved_bytes(parameter: nn.Parameter) -> int:
    """Bytes of the whole parameter in a checkpoint of the model, where what bitsandbytes packed is unpacked again."""
    quant_state = getattr(parameter, "quant_state", None)
    dtype = parameter.dtype if quant_state is None else quant_state.dtype
    return full_shape(parameter).numel() * dtype.itemsize


def split_components(model: nn.Module, recipe: Recipe) -> list[Component]:
    """The model's components, every parameter in exactly one; those that the model lacks are left out.

    The adapters of a component with LoRA are a component of their own, `language_model_lora`, and train in its stead.
    Raises RuntimeError for a parameter that belongs to none: a part was added to the model and not to PREFIXES.
    """
    members = {name + kind: {} for name in PREFIXES for kind in ("", ADAPTERS)}
    for name, parameter in model.named_parameters():
        owners = [owner for owner, prefixes in PREFIXES.items() if name.startswith(prefixes)]
        if len(owners) != 1:
            raise RuntimeError(f"parameter {name} belongs to {len(owners)} components, expected 1")
        members[owners[0] + ADAPTERS * (".lora_" in name)][name] = parameter
    return [_component(recipe, name, parameters) for name, parameters in members.items() if parameters]


def _component(recipe: Recipe, name: str, parameters: dict[str, nn.Parameter]) -> Component:
    asked: ComponentRecipe = getattr(recipe.components, name.removesuffix(ADAPTERS))
    own = asked if recipe.lr_groups == "components" else ComponentRecipe(asked.trained)
    through_adapters = getattr(asked, "lora", False) and not name.endswith(ADAPTERS)
    return Component(
        name,
        parameters,
        asked.trained and not through_adapters,
        own.lr if own.lr is not None else recipe.optim.lr,
        own.weight_decay if own.weight_decay is not None else recipe.optim.weight_decay,
    )


def freeze(components: list[Component]) -> None:
    """Lets the components train that shall, except weights that the model does not use."""
    for component in components:
        for name, parameter in component.parameters.items():
            parameter.requires_grad_(component.trained and not name.startswith(POST_LAYERNORM))


def component_rows(components: list[Component]) -> list[dict]:
    """One row per component, for the table and the run manifest. lr and decay are None where nothing trains."""
    return [
        {
            "component": component.name,
            "parameters": component.num_parameters,
            "trainable": component.num_trainable,
            "lr": component.lr if component.trained else None,
            "weight_decay": component.weight_decay if component.trained else None,
        }
        for component in components
    ]


def component_table(components: list[Component]) -> str:
    """What trains, as text: component | parameters | trainable | lr | decay."""
    rows = component_rows(components)
    total = {key: sum(row[key] for row in rows) for key in ("parameters", "trainable")}
    lines = [("component", "parameters", "trainable", "lr", "decay")]
    for row in rows:
        counts = (f"{row['parameters']:,}", f"{row['trainable']:,}")
        lines.append((row["component"], *counts, _rate(row["lr"]), _rate(row["weight_decay"])))
    lines.append(("total", f"{total['parameters']:,}", f"{total['trainable']:,}", "", ""))
    return text_table(lines, right=[False, True])


def _rate(value: float | None) -> str:
    return "-" if value is None else f"{value:g}"
