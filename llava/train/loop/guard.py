"""Stops a run at the first loss or gradient that is not finite, on all ranks, and keeps what caused it."""

from pathlib import Path

import torch
from accelerate.utils import send_to_device
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

    def agree(self, step: int, grad_norm: torch.Tensor | float, *requests: float) -> list[list[float]]:
        """Every rank's requests, by rank; one exchange between ranks and one wait for the device a step.

        Args:
            step: the number of it.
            grad_norm: of the step, the same on all ranks; DeepSpeed gives -1 for one that is not finite.
            requests: this rank's: numbers, whole ones up to 2**53.

        Raises:
            NonFiniteError: when any rank's loss, or the norm, is not finite.
        """
        finite = torch.stack([loss.float() for loss in self.losses]).isfinite()
        norm = torch.as_tensor(grad_norm, device=self.device).float()
        faults = torch.stack([~finite.all(), ~norm.isfinite() | (norm < 0)])
        row = torch.cat([faults.double(), torch.tensor(requests, dtype=torch.float64, device=self.device)])
        table = row[None]
        if distributed.is_initialized():
            table = row.new_empty(distributed.get_world_size(), len(row))
            distributed.all_gather_into_tensor(table, row[None])
        rows = table.tolist()
        bad_loss, bad_norm = (any(of_rank[fault] for of_rank in rows) for fault in range(2))
        if bad_loss or bad_norm:
            self._stop(step, finite.tolist(), norm.item(), bad_loss)
        return [of_rank[2:] for of_rank in rows]

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
                "inputs": send_to_device(self.batches[index], "cpu"),
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
