"""A sum of states of the tower, weighed by crop."""

from collections.abc import Sequence

import torch


def weighted_sum(states: Sequence[torch.Tensor], weights_CL: torch.Tensor) -> torch.Tensor:
    """sum_l w_l V_l of L states (C, T, D), added up in float32; autograd keeps nothing but the states and weights."""
    total_CTD = weights_CL.new_zeros((), dtype=torch.float32)
    for number, state_CTD in enumerate(states):
        total_CTD = torch.addcmul(total_CTD, weights_CL[:, number, None, None].float(), state_CTD)
    return total_CTD
