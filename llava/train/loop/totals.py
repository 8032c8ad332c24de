"""What a run has done over all its starts: time, loss, and samples that were not trained on as they are."""

import time
from collections.abc import Iterable

import torch

from llava.data.dataset import Origin


class Totals:
    """This process's part since it started, and what the checkpoint notes that the run goes on from.

    Everything is counted when it is trained on, not when it is loaded, so that what a start had done or loaded after
    its last checkpoint counts for nothing: the next one does it again.

    Args:
        device: of the losses.
        started: when this start began, in seconds since 1970.
        before: what `joined` gave at the checkpoint that the run goes on from; empty where it starts anew.
    """

    def __init__(self, device: torch.device, started: float, before: dict):
        self.started = started
        self.before = {"started": started, "seconds": 0.0, "loss": 0.0, "skipped": 0, "shortened": 0} | before
        self._loss = torch.zeros((), dtype=torch.float64, device=device)  # reading it would wait for the GPU
        self._skipped = self._shortened = 0

    def count(self, origins: Iterable[Origin]) -> None:
        """Counts what the dataset says of the samples of a step."""
        for origin in origins:
            self._skipped += origin.skipped
            self._shortened += origin.shortened

    def add_loss(self, loss: torch.Tensor) -> None:
        """Adds a micro-batch's, which is its share of the step's."""
        self._loss += loss

    def of_rank(self) -> dict:
        """What this process has counted, to be given to `joined`."""
        return {"loss": self._loss.item(), "skipped": self._skipped, "shortened": self._shortened}

    def joined(self, ranks: list[dict]) -> dict:
        """Of the run so far, as a checkpoint notes it: skipped, shortened, started, seconds, loss (the steps' sum).

        Args:
            ranks: `of_rank` of every rank. A step's loss is the mean of theirs, as the Trainer logs it.
        """
        before = self.before
        return {
            "skipped": before["skipped"] + sum(counts["skipped"] for counts in ranks),
            "shortened": before["shortened"] + sum(counts["shortened"] for counts in ranks),
            "started": before["started"],
            "seconds": before["seconds"] + time.time() - self.started,
            "loss": before["loss"] + sum(counts["loss"] for counts in ranks) / len(ranks),
        }
