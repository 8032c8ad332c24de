"""The heaviest micro-batch is tried before the first step, so that a lack of memory shows then and not in hour 60.

Training is the same bit for bit with and without: no step is taken, gradients are thrown away, random numbers and
counts are put back. DeepSpeed adds up gradients where nothing else can reach them, so there they are made zeros.
"""

from collections.abc import Callable
from contextlib import nullcontext

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType

from llava.errors import LlavaError
from llava.train.loop.held_out_evaluation import kept_random_state
from llava.train.loop.optimizer import moments_to_come


def rehearse(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    loss_of: Callable[[], torch.Tensor],
    accelerator: Accelerator,
    name: str,
) -> None:
    """One forward and backward pass; every rank calls it, with the same samples.

    Args:
        model: as it trains, wrapped.
        optimizer: of the model; the memory of states that it has not made yet is set aside meanwhile.
        loss_of: computes the loss of the micro-batch.
        accelerator: what wrapped them.
        name: of the micro-batch, for the message.

    Raises:
        LlavaError: if the memory does not suffice.
    """
    partitioned = accelerator.distributed_type == DistributedType.DEEPSPEED
    gradients = accelerator.gradient_state
    synchronises = gradients.sync_gradients
    gradients._set_sync_gradients(False)
    model.train()
    try:
        with kept_random_state(accelerator.device), nullcontext() if partitioned else accelerator.no_sync(model):
            states = moments_to_come(optimizer)
            loss = loss_of()
            # A loss that is not finite is for the guard to find in its step, with the names of the samples.
            finite = accelerator.reduce(loss.detach().isfinite().int())
            if finite == accelerator.num_processes:
                accelerator.backward(loss * 0, **({"scale_wrt_gas": False} if partitioned else {}))
            del states
    except torch.OutOfMemoryError as error:
        raise LlavaError(
            f"the {name} does not fit into this GPU's memory; pass --optim.batch_size a smaller number (the global "
            f"batch stays), --run.gradient_checkpointing true or another --run.deepspeed ({error})"
        ) from error
    finally:
        gradients._set_sync_gradients(synchronises)
    if not partitioned:
        model.zero_grad(set_to_none=True)
