"""The weights of a model that the first rank alone has loaded, on every rank: one parameter after the other.

The other ranks have built the model on the meta device, which holds no numbers. Where ranks are replicas (DDP, ZeRO-1,
ZeRO-2) each gets the whole; under ZeRO-3 a parameter is cut as soon as it is sent, so that of the whole model no rank
but the first ever holds more than its piece and one parameter.
"""

from collections.abc import Iterator

import torch
from torch import distributed, nn


def share_weights(model: nn.Module, device: torch.device, zero_3: dict | None = None) -> None:
    """Gives every rank the first one's parameters and buffers; every rank calls it, with the group connected.

    The parameters stay the objects that they are, so that what holds them, an optimizer's group or a component, still
    does. Of one process there is nothing to do.

    Args:
        model: with the same parameters, dtypes among it, on every rank; elsewhere than on the first they may be on the
            meta device.
        device: where this process trains.
        zero_3: DeepSpeed's configuration where it is to partition the parameters; None for replicas.
    """
    if not distributed.is_initialized() or distributed.get_world_size() == 1:
        return
    for buffer in model.buffers():
        _place(buffer, device)
        distributed.broadcast(buffer, 0)
    if zero_3 is None:
        for parameter in _placed(model, device):
            distributed.broadcast(parameter.data, 0)
    else:
        from deepspeed import zero

        zero.Init(module=_OneByOne(model, device), config_dict_or_path=zero_3)  # sends what it partitions


class _OneByOne(nn.Module):
    """A model that places each parameter only when it is asked for."""

    def __init__(self, model: nn.Module, device: torch.device):
        super().__init__()
        self._placed = lambda: _placed(model, device)

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """The model's."""
        return self._placed()


def _placed(model: nn.Module, device: torch.device) -> Iterator[nn.Parameter]:
    for parameter in model.parameters():
        _place(parameter, device)
        yield parameter


def _place(tensor: torch.Tensor, device: torch.device) -> None:
    """Puts a tensor on the device as it is, and one without numbers as room for them."""
    if tensor.is_meta:
        room = torch.empty_like(tensor.data, device=device)
    elif tensor.device != device:
        room = tensor.data.to(device)
    else:
        return
    if isinstance(tensor, nn.Parameter):
        room = nn.Parameter(room, requires_grad=tensor.requires_grad)
    torch.utils.swap_tensors(tensor, room)
