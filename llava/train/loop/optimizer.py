"""AdamW with one group per component and decay. Groups carry their component's name into logs and checkpoints.

The optimizer is made here and never in the DeepSpeed JSON: an "optimizer" block there makes transformers build one
group of all parameters, and the components' own rates are silently lost.
"""

import torch

from llava.train.loop.components import Component, full_shape


def parameter_groups(components: list[Component]) -> list[dict]:
    """Groups for torch.optim.AdamW, each {"params", "lr", "weight_decay", "component"}.

    Only matrices decay; biases, norms and the newline vector form a second group of their component without decay.
    """
    groups = []
    for component in components:
        trained = [parameter for parameter in component.parameters.values() if parameter.requires_grad]
        matrices = [parameter for parameter in trained if len(full_shape(parameter)) > 1]
        vectors = [parameter for parameter in trained if len(full_shape(parameter)) <= 1]
        if component.weight_decay == 0:
            matrices, vectors = trained, []
        for parameters, weight_decay in ((matrices, component.weight_decay), (vectors, 0.0)):
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


def create_adamw(components: list[Component], lr_groups: str) -> torch.optim.AdamW:
    """AdamW over what trains. lr_groups: `components` or `single`, see Recipe."""
    groups = single_group(components) if lr_groups == "single" else parameter_groups(components)
    optimizer = torch.optim.AdamW(groups)
    optimizer.register_step_pre_hook(_fill_gradients)
    return optimizer


def _fill_gradients(optimizer: torch.optim.Optimizer, *_) -> None:
    """Gives zero gradients to parameters that took no part in a step, such as the tower's in a step of text alone.

    AdamW would skip them, momentum included, where ranks that reduce gradients see zeros: one process would not train
    as several do.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
