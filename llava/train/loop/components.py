"""The parts of the model that train separately: which parameters belong to each, and at which rate they learn."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from llava.text_table import text_table

ADAPTERS = "_lora"  # behind the name of a component whose adapters train in its stead


@dataclass(frozen=True)
class Component:
    """One part of a model with its rates.

    Attributes:
        name: of the part.
        parameters: {name: parameter}, all of them, frozen or not.
        trained: whether it learns.
        lr: at its peak.
        weight_decay: of what decays.
        unused: names of parameters that the model does not use, which never train.
        undecayed: names of parameters without decay; None is all but matrices.
    """

    name: str
    parameters: dict[str, nn.Parameter]
    trained: bool
    lr: float
    weight_decay: float
    unused: frozenset[str] = frozenset()
    undecayed: frozenset[str] | None = None

    @property
    def num_parameters(self) -> int:
        """Whole parameters, also where ZeRO-3 has cut them."""
        return sum(full_shape(parameter).numel() for parameter in self.parameters.values())

    @property
    def num_bytes(self) -> int:
        """Of them in a checkpoint."""
        return sum(map(saved_bytes, self.parameters.values()))

    def decays(self, name: str) -> bool:
        """Whether `weight_decay` is for this parameter."""
        if self.undecayed is None:
            return len(full_shape(self.parameters[name])) > 1
        return name not in self.undecayed

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


def parts_of(model: nn.Module, prefixes: Mapping[str, Sequence[str]]) -> dict[str, dict[str, nn.Parameter]]:
    """{part: {name: parameter}}, every parameter in exactly one; a part that the model lacks has none.

    prefixes: of the names of each part's parameters.
    Raises RuntimeError for a parameter that belongs to none: a part was added to the model and not to `prefixes`.
    """
    parts: dict[str, dict[str, nn.Parameter]] = {part: {} for part in prefixes}
    for name, parameter in model.named_parameters():
        owners = [part for part, beginnings in prefixes.items() if name.startswith(tuple(beginnings))]
        if len(owners) != 1:
            raise RuntimeError(f"parameter {name} belongs to {len(owners)} components, expected 1")
        parts[owners[0]][name] = parameter
    return parts


def freeze(components: list[Component]) -> None:
    """Lets the components train that shall, except weights that the model does not use."""
    for component in components:
        for name, parameter in component.parameters.items():
            parameter.requires_grad_(component.trained and name not in component.unused)


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
