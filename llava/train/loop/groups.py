"""Whether the optimizer that will really step, wrapped by DeepSpeed or not, trains what the component table says."""

import torch
from accelerate.optimizer import AcceleratedOptimizer
from torch import nn
from transformers import TrainerCallback

from llava.errors import LlavaError
from llava.train.loop.components import Component, full_shape


class OptimizerCheck(TrainerCallback):
    """Stops a run before its first step when an optimizer group is not what the table says.

    groups: afterwards, the rows of check_groups for the run's manifest.
    """

    def __init__(self, components: list[Component], lr_groups: str):
        self.components = components
        self.lr_groups = lr_groups
        self.groups: list[dict] = []

    def on_train_begin(self, args, state, control, optimizer=None, **kwargs):
        self.groups = check_groups(self.components, self.lr_groups, optimizer)


def check_groups(components: list[Component], lr_groups: str, optimizer) -> list[dict]:
    """The optimizer's real groups as rows: component, parameters (numbers), lr at its peak, weight_decay.

    optimizer: AdamW with a schedule, also wrapped by accelerate and by DeepSpeed's ZeRO 1 to 3. lr_groups: see Recipe.
    Raises LlavaError that names the first parameter which trains otherwise than its component's row says.
    """
    real, rows, faults = {}, [], []
    for group, parameters in real_groups(optimizer):
        lr, weight_decay = group["initial_lr"], group["weight_decay"]
        numbers = sum(full_shape(parameter).numel() for parameter in parameters)
        rows.append({"component": group["component"], "parameters": numbers, "lr": lr, "weight_decay": weight_decay})
        for parameter in parameters:
            real.setdefault(parameter, []).append((lr, weight_decay))
    for component in components:
        for name, parameter in component.parameters.items():
            found, expected = real.pop(parameter, []), _expected(component, parameter, lr_groups)
            if found != expected:
                faults.append(f"{name} {_words(found)}; the table's row {component.name} says it {_words(expected)}")
    if real:
        faults.append(f"{len(real)} parameters of the optimizer belong to no component")
    if faults:
        more = f" (and {len(faults) - 1} parameters more)" * (len(faults) > 1)
        raise LlavaError(f"the optimizer does not train what the component table says: {faults[0]}{more}")
    return rows


def _expected(component: Component, parameter: nn.Parameter, lr_groups: str) -> list[tuple[float, float]]:
    if not parameter.requires_grad:
        return []
    decays = lr_groups == "single" or len(full_shape(parameter)) > 1
    return [(component.lr, component.weight_decay if decays else 0.0)]


def _words(rates: list[tuple[float, float]]) -> str:
    return " and ".join(f"trains at lr {lr:g}, decay {decay:g}" for lr, decay in rates) or "is frozen"


def real_groups(optimizer) -> list[tuple[dict, list[nn.Parameter]]]:
    """(group, the model's parameters that it updates) for each group.

    The groups of ZeRO hold flat slices, or nothing between steps; what these stand for is kept beside them.
    """
    if isinstance(optimizer, AcceleratedOptimizer):
        optimizer = optimizer.optimizer
    groups = optimizer.param_groups
    if isinstance(optimizer, torch.optim.Optimizer):
        members = [group["params"] for group in groups]
    elif hasattr(optimizer, "sub_group_to_group_id"):  # ZeRO-3 cuts large groups into several
        members = [[] for _ in groups]
        for index, parameters in enumerate(optimizer.fp16_groups):
            members[optimizer.sub_group_to_group_id[index]] += parameters
    else:  # ZeRO-1 and 2; ZeRO-0 in bfloat16
        members = optimizer.bit16_groups if hasattr(optimizer, "bit16_groups") else optimizer.bf16_groups
    return list(zip(groups, members, strict=True))
