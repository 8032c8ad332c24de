"""AdamW with one group per component and decay. Groups carry their component's name into logs and checkpoints.

The optimizer is made here and never in the DeepSpeed JSON: an "optimizer" block there makes transformers build one
group of all parameters, and the components' own rates are silently lost. Before the first step the groups that will
really step, wrapped by DeepSpeed or not, are compared with the component table.
"""

from typing import Any

import torch
from accelerate.optimizer import AcceleratedOptimizer
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from llava.errors import LlavaError
from llava.train.loop.components import Component, full_shape


def parameter_groups(components: list[Component]) -> list[dict]:
    """Groups for torch.optim.AdamW, each {"params", "lr", "weight_decay", "component"}.

    Only matrices decay, unless a component says otherwise; biases, norms and the newline vector form a second group of
    their component without decay.
    """
    groups = []
    for component in components:
        trained = {name: parameter for name, parameter in component.parameters.items() if parameter.requires_grad}
        decayed = [parameter for name, parameter in trained.items() if component.decays(name)]
        others = [parameter for name, parameter in trained.items() if not component.decays(name)]
        if component.weight_decay == 0:
            decayed, others = list(trained.values()), []
        for parameters, weight_decay in ((decayed, component.weight_decay), (others, 0.0)):
            if parameters:
                groups.append(
                    {
                        "params": parameters,
                        "lr": component.lr,
                        "weight_decay": weight_decay,
                        "component": component.name,
                    }
                )
    return groups


def single_group(components: list[Component]) -> list[dict]:
    """One group of everything that trains, as in the released run; its rates are the same for every component."""
    trained = [p for component in components for p in component.parameters.values() if p.requires_grad]
    first = components[0]
    return [{"params": trained, "lr": first.lr, "weight_decay": first.weight_decay, "component": "all"}]


def create_adamw(
    components: list[Component], lr_groups: str, *, on_gpu: bool = False, beta2: float = 0.999
) -> torch.optim.AdamW:
    """AdamW over what trains.

    Args:
        components: of the model.
        lr_groups: `components` or `single`, see Recipe.
        on_gpu: one kernel for many tensors then, which also holds no copies of them; elsewhere what torch takes.
        beta2: how much of the mean of squared gradients a step keeps.
    """
    groups = single_group(components) if lr_groups == "single" else parameter_groups(components)
    optimizer = torch.optim.AdamW(groups, betas=(0.9, beta2), fused=on_gpu or None)
    optimizer.register_step_pre_hook(_fill_gradients)
    return optimizer


def _fill_gradients(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    """Gives zero gradients to parameters that took no part in a step, such as the tower's in a step of text alone.

    AdamW would skip them, momentum included, where ranks that reduce gradients see zeros: one process would not train
    as several do.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)


def moments_to_come(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    """Tensors as large as what AdamW will make at its first step; none where its states are there already.

    DeepSpeed makes them at once, but for ZeRO-1 in bfloat16.
    """
    while not isinstance(optimizer, torch.optim.AdamW):  # of accelerate, of DeepSpeed
        optimizer = optimizer.optimizer
    if optimizer.state:
        return []
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return [torch.empty_like(parameter) for parameter in parameters for _ in ("exp_avg", "exp_avg_sq")]


class OptimizerCheck(TrainerCallback):
    """Stops a run before its first step when an optimizer group is not what the table says.

    Attributes:
        groups: afterwards, the rows of check_groups for the run's manifest.
    """

    def __init__(self, components: list[Component], lr_groups: str):
        self.components = components
        self.lr_groups = lr_groups
        self.groups: list[dict] = []

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: torch.optim.Optimizer | None = None,
        **kwargs: Any,
    ) -> None:
        """Checks the groups before the first step. Raises LlavaError as check_groups."""
        self.groups = check_groups(self.components, self.lr_groups, optimizer)


def check_groups(components: list[Component], lr_groups: str, optimizer: torch.optim.Optimizer) -> list[dict]:
    """The optimizer's real groups as rows: component, parameters (numbers), lr at its peak, weight_decay.

    Args:
        components: what the table says.
        lr_groups: see Recipe.
        optimizer: AdamW with a schedule, also wrapped by accelerate and by DeepSpeed's ZeRO 1 to 3.

    Raises:
        LlavaError: names the first parameter which trains otherwise than its component's row says.
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
            rates, expected = real.pop(parameter, []), _expected(component, name, lr_groups)
            if rates != expected:
                faults.append(f"{name} {_words(rates)}; the table's row {component.name} says it {_words(expected)}")
    if real:
        faults.append(f"{len(real)} parameters of the optimizer belong to no component")
    if faults:
        more = f" (and {len(faults) - 1} parameters more)" if len(faults) > 1 else ""
        raise LlavaError(f"the optimizer does not train what the component table says: {faults[0]}{more}")
    return rows


def _expected(component: Component, name: str, lr_groups: str) -> list[tuple[float, float]]:
    if not component.parameters[name].requires_grad:
        return []
    decays = lr_groups == "single" or component.decays(name)
    return [(component.lr, component.weight_decay if decays else 0.0)]


def _words(rates: list[tuple[float, float]]) -> str:
    return " and ".join(f"trains at lr {lr:g}, decay {decay:g}" for lr, decay in rates) or "is frozen"


def real_groups(optimizer: torch.optim.Optimizer) -> list[tuple[dict, list[nn.Parameter]]]:
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
    else:  # ZeRO-2, and ZeRO-1 in float32; ZeRO-1 in bfloat16
        members = optimizer.bit16_groups if hasattr(optimizer, "bit16_groups") else optimizer.bf16_groups
    return list(zip(groups, members, strict=True))
