"""What a run has done over all its starts: time, loss, and samples that were not trained on as they are."""

import time
from datetime import UTC, datetime

import torch


class Totals:
    """This process's part since it started, and what the checkpoint notes that the run goes on from.

    Everything is counted when it is trained on, not when it is loaded, so that what a start had done or loaded after
    its last checkpoint counts for nothing: the next one does it again.

    device: of the losses.
    """

    def __init__(self, device: torch.device):
        self.start = time.time()  # may be set to an earlier moment, when loading began
        self.before = {"started": None, "seconds": 0.0, "loss": 0.0, "skipped": 0, "shortened": 0}
        self._loss = torch.zeros((), dtype=torch.float64, device=device)  # reading it would wait for the GPU
        self._skipped = self._shortened = 0

    def count(self, batches: list[dict]) -> None:
        """Counts a step's micro-batches by what the dataset says of their samples."""
        origins = [origin for batch in batches for origin in batch["samples"]]
        self._skipped += sum(origin.skipped for origin in origins)
        self._shortened += sum(origin.shortened for origin in origins)

    def add_loss(self, loss: torch.Tensor) -> None:
        """loss: of a micro-batch, its share of the step's."""
        self._loss += loss

    def own(self) -> dict:
        """What this process has counted, to be given to `joined`."""
        return {"loss": self._loss.item(), "skipped": self._skipped, "shortened": self._shortened}

    def joined(self, ranks: list[dict]) -> dict:
        """Of the run so far, as a checkpoint notes it: started, seconds, loss (the steps' sum), skipped, shortened.

        ranks: `own` of every rank. A step's loss is the mean of theirs, as the Trainer logs it.
        """
        found = {key: self.before[key] + sum(own[key] for own in ranks) for key in ("skipped", "shortened")}
        found["started"] = self.before["started"] or self.start
        found["seconds"] = self.before["seconds"] + time.time() - self.start
        found["loss"] = self.before["loss"] + sum(own["loss"] for own in ranks) / len(ranks)
        return found


def results(totals: dict, steps: int) -> dict:
    """For run.json: the mean loss of the run's steps, its samples' counts, when it started and ended, in UTC.

    seconds: what its starts took together, each until the checkpoint that the next one went on from.
    """
    started, ended = totals["started"], time.time()
    first, last = (datetime.fromtimestamp(moment, UTC).isoformat(timespec="seconds") for moment in (started, ended))
    return {
        "train_loss": totals["loss"] / steps,
        "skipped": totals["skipped"],
        "shortened": totals["shortened"],
        "started": first,
        "ended": last,
        "seconds": round(totals["seconds"], 1),
    }
