"""Going on from a DeepSpeed checkpoint with another number of processes than wrote it.

Its optimizer states are cut into one piece per process. DeepSpeed's converter to its universal format joins them, one
file per parameter and state; they are then set in the new run's optimizer, whatever its pieces are.
"""

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from llava.errors import LlavaError
from llava.train.loop.components import full_shape

if TYPE_CHECKING:
    from deepspeed.runtime.base_optimizer import ZeROOptimizer

MOMENTS = ("exp_avg", "exp_avg_sq")  # AdamW's


def join_states(checkpoint: Path, folder: Path) -> None:
    """Writes the whole states of every trained parameter to `folder`; one process calls it. LlavaError if it fails."""
    states = checkpoint / (checkpoint / "latest").read_text().strip()  # DeepSpeed counts steps from a reshape on
    command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", "--inject_missing_state"]
    command += ["--input_folder", str(states), "--output_folder", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise LlavaError(f"{checkpoint} cannot be converted: {done.stderr.strip().splitlines()[-1]}")


def set_states(model: nn.Module, optimizer: "ZeROOptimizer", step: int, folder: Path) -> None:
    """Sets weights, moments and the number of steps from `folder`; every rank calls it, in the same order.

    What is frozen stays as the stage started with it.

    model: as DeepSpeed has partitioned it. optimizer: DeepSpeed's.
    """
    from deepspeed.runtime.zero import GatheredParameters
    from deepspeed.utils import lazy_init_hp_params_optimizer_state, safe_set_full_fp32_param
    from deepspeed.utils import safe_set_full_optimizer_state as set_state

    adamw = optimizer.optimizer
    zero_3 = hasattr(next(model.parameters()), "ds_id")
    groups, pieces = _cut_groups(optimizer)
    for piece in pieces:  # as AdamW makes them at its first step, which has not been
        adamw.state[piece] = {moment: torch.zeros_like(piece) for moment in MOMENTS} | {
            "step": torch.tensor(float(step))
        }
    if not zero_3:  # ZeRO-1 and 2 find a parameter's states by links
        for parameters, piece in zip(groups, pieces):
            lazy_init_hp_params_optimizer_state(parameters, piece, adamw.state)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            weight = _read(folder / "zero" / name / "fp32.pt", parameter)
            safe_set_full_fp32_param(parameter, weight)
            with GatheredParameters(parameter, modifier_rank=0):
                parameter.data.copy_(weight)
            for moment in MOMENTS:
                set_state(parameter, _read(folder / "zero" / name / f"{moment}.pt", parameter), moment)


def _cut_groups(optimizer: "ZeROOptimizer") -> tuple[list[list[nn.Parameter]], list[torch.Tensor]]:
    """Groups of parameters, and of each this rank's flat float32 piece."""
    if hasattr(optimizer, "fp32_partitioned_groups_flat"):
        return optimizer.fp16_groups, optimizer.fp32_partitioned_groups_flat  # ZeRO-3
    if hasattr(optimizer, "bf16_groups"):
        return optimizer.bf16_groups, optimizer.fp32_groups_flat_partition  # ZeRO-1 in bfloat16
    return optimizer.bit16_groups, optimizer.single_partition_of_fp32_groups


def _read(path: Path, parameter: nn.Parameter) -> torch.Tensor:
    """One state, whole: ZeRO-2's are stored in a dictionary, ZeRO-3's flat. Nothing but tensors is read."""
    stored = torch.load(path, weights_only=True)
    whole = stored["param"] if isinstance(stored, dict) else stored
    return whole.flatten()[: full_shape(parameter).numel()].view(full_shape(parameter))
