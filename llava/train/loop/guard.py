"""Stops a run at the first loss or gradient that is not finite, on all ranks, and keeps what caused it."""

from pathlib import Path

import torch
from torch import distributed

from llava.data.dataset import Origin
from llava.errors import LlavaError
from llava.train.ranks.process_group import gathered

SHOWN_SAMPLES = 20


class NonFiniteError(LlavaError):
    """A loss or gradient that is infinite or not a number. Raised on every rank, with the same message.

    Attributes:
        step: the number of it.
        ids: of the samples to blame.
    """

    def __init__(self, message: str, step: int, ids: list[str]):
        super().__init__(message)
        self.step, self.ids = step, ids


class Guard:
    """Remembers a step's micro-batches and losses, and judges them once per step.

    Args:
        folder: where the batches of a step that is stopped are saved.
        device: of the losses.
    """

    def __init__(self, folder: Path, device: torch.device):
        self.folder = folder
        self.device = device
        self.batches: list[dict] = []
        self.origins: list[list[Origin]] = []
        self.losses: list[torch.Tensor] = []

    def begin(self, batches: list[dict], origins: list[list[Origin]]) -> None:
        """Takes a step's micro-batches and, for each of them, its samples' origins."""
        self.batches = batches
        self.origins = origins
        self.losses = []

    def add_loss(self, loss: torch.Tensor) -> None:
        """Takes the loss of the step's next micro-batch."""
        self.losses.append(loss)

    @property
    def running(self) -> list[Origin]:
        """Of the samples of the micro-batch that has no loss yet; none behind the last."""
        return self.origins[len(self.losses)] if len(self.losses) < len(self.origins) else []

    def agree(self, step: int, grad_norm: torch.Tensor | float, *requests: float) -> list[float]:
        """Every rank's largest value of each request; one exchange between ranks and one wait for the device a step.

        Args:
            step: the number of it.
            grad_norm: of the step, the same on all ranks; DeepSpeed gives -1 for one that is not finite.
            requests: this rank's, see SaveAndStop.

        Raises:
            NonFiniteError: when any rank's loss, or the norm, is not finite.
        """
        finite = torch.stack([loss.float() for loss in self.losses]).isfinite()
        norm = torch.as_tensor(grad_norm, device=self.device).float()
        faults = torch.stack([~finite.all(), ~norm.isfinite() | (norm < 0)])
        flags = torch.cat([faults.float(), torch.tensor(requests, device=self.device)])
        if distributed.is_initialized():
            distributed.all_reduce(flags, distributed.ReduceOp.MAX)
        bad_loss, bad_norm, *agreed = flags.tolist()
        if bad_loss or bad_norm:
            self._stop(step, finite.tolist(), norm.item(), bool(bad_loss))
        return agreed

    def _stop(self, step: int, finite: list[bool], norm: float, bad_loss: bool) -> None:
        """Saves what is to blame on this rank, and raises with what every rank found.

        A loss points at one micro-batch; a gradient whose losses are all finite may come from any of the step.
        """
        blamed = [index for index, good in enumerate(finite) if not good][:1] if bad_loss else range(len(finite))
        lines = gathered([self._save(step, blamed, norm)] if blamed else [])
        ids = gathered([origin.id for index in blamed for origin in self.origins[index] if not origin.skipped])
        what = "loss" if bad_loss else "gradient"
        message = "\n".join([f"step {step}: a {what} is not finite; nothing was saved after it", *lines])
        raise NonFiniteError(message, step, [name for name in dict.fromkeys(ids) if name])

    def _save(self, step: int, blamed: list[int] | range, norm: float) -> str:
        """Writes the micro-batches `blamed`, each with its samples and loss, and returns a line about them."""
        rank = distributed.get_rank() if distributed.is_initialized() else 0
        path = self.folder / f"step-{step}-rank-{rank}.pt"
        batches = [
            {
                "samples": [str(origin) for origin in self.origins[index]],
                "loss": self.losses[index].item(),
                "inputs": {key: value.cpu() for key, value in self.batches[index].items()},
            }
            for index in blamed
        ]
        samples = [sample for batch in batches for sample in batch["samples"]]
        shown = ", ".join(samples[:SHOWN_SAMPLES])
        if len(samples) > SHOWN_SAMPLES:
            shown += f" and {len(samples) - SHOWN_SAMPLES} more"
        losses = ", ".join(f"{batch['loss']:g}" for batch in batches)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            torch.save({"step": step, "rank": rank, "grad_norm": norm, "batches": batches}, path)
            saved = f"saved in {path}"
        except (OSError, RuntimeError) as error:  # torch.save raises both; the names matter more than the file
            saved = f"could not be saved in {path}: {error}"
        return f"  rank {rank}: loss {losses}, gradient norm {norm:g}, from {shown}; its batch {saved}"
