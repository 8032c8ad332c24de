"""A sample that cannot be read while a run trains, met by one rank: all ranks end together, before its step."""

from collections.abc import Sequence

import torch
from torch import distributed

from llava.data.dataset import Origin
from llava.errors import DataError
from llava.train.ranks.process_group import gathered


class BadSampleError(DataError):
    """Samples that end the run, `on_bad_sample` being error. Raised on every rank, with the same faults.

    Attributes:
        faults: a line each.
        ids: of the samples; a data file's fault has none.
    """

    def __init__(self, faults: Sequence[str], ids: Sequence[str]):
        super().__init__("; ".join(faults))
        self.faults, self.ids = faults, ids


def agreed_error(origins: Sequence[Sequence[Origin]], device: torch.device) -> BadSampleError | None:
    """The error for what the ranks' micro-batches of a step have that cannot be used; every rank calls it.

    One exchange between ranks, and one wait for the device: the step before is over by then.

    Args:
        origins: of this rank's micro-batches.
        device: of exchanges.
    """
    bad = [origin for of_batch in origins for origin in of_batch if origin.fault is not None]
    flag = torch.tensor(float(bool(bad)), device=device)
    if distributed.is_initialized():
        distributed.all_reduce(flag, distributed.ReduceOp.MAX)
    if not flag.item():
        return None
    met = gathered([(origin.fault, origin.id) for origin in bad])
    return BadSampleError([fault for fault, _ in met], list(dict.fromkeys(name for _, name in met if name)))
