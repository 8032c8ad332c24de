"""The language model's head, and the loss of many positions without the logits of all of them.

In float32 the logits of one position are 0.6 MB at a vocabulary of 151,936, and the loss and its gradient need them
three times: those of 16,384 supervised tokens would be 30 GB. Here positions are taken CHUNK at a time, and the
gradients of a chunk are computed while its logits are there, so that the backward pass has only to scale their sums.

Shapes: N positions, D width, V vocabulary.
"""

from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import cross_entropy, linear

from llava.constants import IGNORE_INDEX

Items = torch.Tensor | int
CHUNK = 1024  # positions whose logits are there at once: 2 GB of them, large enough to keep a GPU busy


class LanguageHead(nn.Linear):
    """nn.Linear without bias that can also return the loss of its logits.

    Both are the module's forward, called once in a pass however many chunks there are: ZeRO-3 gathers the weight there,
    on all ranks alike.
    """

    def __init__(self, in_features: int, out_features: int):
        super().__init__(in_features, out_features, bias=False)

    def forward(
        self,
        hidden: torch.Tensor,
        labels: torch.Tensor | None = None,
        num_items: Items | None = None,
    ) -> torch.Tensor:
        """The logits (..., V) of hidden (..., D); or, with labels, the loss at N positions.

        Args:
            hidden: with labels (N, D).
            labels: (N,), the token that each position predicts, or IGNORE_INDEX.
            num_items: what the summed loss is divided by; None for the number of labels, which makes it their mean.
        """
        if labels is None:
            return super().forward(hidden)
        if num_items is None:
            num_items = (labels != IGNORE_INDEX).sum()
        if torch.is_tensor(num_items):
            num_items = num_items.to(hidden.device)
        if torch.is_grad_enabled():
            return _ChunkedLoss.apply(hidden, self.weight, labels, num_items)
        chunks = zip(hidden.split(CHUNK), labels.split(CHUNK))
        return torch.stack([_loss(*chunk, self.weight, num_items) for chunk in chunks]).sum()


def _loss(hidden_ND: torch.Tensor, labels_N: torch.Tensor, weight_VD: torch.Tensor, num_items: Items) -> torch.Tensor:
    """A chunk's share of the loss, as transformers computes it of all positions."""
    logits = linear(hidden_ND, weight_VD).float()
    return cross_entropy(logits, labels_N, ignore_index=IGNORE_INDEX, reduction="sum") / num_items


class _ChunkedLoss(torch.autograd.Function):
    """The loss, whose gradients are computed with it. More than one chunk's are added up in float32."""

    @staticmethod
    def forward(
        ctx: Any, hidden_ND: torch.Tensor, weight_VD: torch.Tensor, labels_N: torch.Tensor, num_items: Items
    ) -> torch.Tensor:
        needed = ctx.needs_input_grad[:2]
        weight = weight_VD.detach().requires_grad_(needed[1])
        losses: list[torch.Tensor] = []
        of_hidden: list[torch.Tensor] = []
        of_weight: torch.Tensor | None = None
        for chunk, labels in zip(hidden_ND.detach().split(CHUNK), labels_N.split(CHUNK)):
            hidden = chunk.requires_grad_(needed[0])
            with torch.enable_grad():
                loss = _loss(hidden, labels, weight, num_items)
            losses.append(loss.detach())
            inputs = [tensor for tensor in (hidden, weight) if tensor.requires_grad]
            gradients = list(torch.autograd.grad(loss, inputs)) if inputs else []
            if needed[1]:
                of_weight = gradients.pop() if of_weight is None else of_weight.float().add_(gradients.pop())
            of_hidden += gradients
        ctx.save_for_backward(
            torch.cat(of_hidden) if needed[0] else None, of_weight.to(weight) if of_weight is not None else None
        )
        return torch.stack(losses).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None, None, None]:
        of_hidden, of_weight = (None if saved is None else saved * gradient for saved in ctx.saved_tensors)
        return of_hidden, of_weight, None, None
