"""What is said of a benchmark: how it is asked, where its documents lie, and how its answers are scored."""

from collections.abc import Callable
from dataclasses import dataclass

NO_LIMIT = 1024  # what LLaVA-OneVision generates at most for tasks that name no limit


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """name: as the paper writes it. task, split: lmms-eval's. metric: its key in the harness's results.

    scale: what takes the harness's value to [0, 100]. judged: whether a judge reads the answers.
    image_kind: Natural, Abstract or Hybrid; resolution: Low or High; None where the paper does not say.
    yaml: the task's file in lmms_eval/tasks. dataset, config: where its documents lie on the hub. columns: the fields
    that the task reads. images: the configuration in which the images lie once each (columns id, image), where the
    documents name them (column imageId) and do not hold them. tokens: the longest answer in the paper's run.
    document_score: from what the task's process_results gives for one document to its score in [0, 1], or to
    [points, of] where the benchmark's value is a ratio of sums.
    documents: what the harness divides by, however many documents are asked; None where it takes their mean.
    note: what a reader of the score has to know.
    """

    name: str
    task: str
    split: str
    metric: str
    scale: float
    category: str
    judged: bool = False
    image_kind: str | None = None
    resolution: str | None = None
    yaml: str
    dataset: str
    config: str | None = None
    columns: tuple[str, ...]
    images: str | None = None
    tokens: int = NO_LIMIT
    document_score: Callable[[object], float | list[float]] = float
    documents: int | None = None
    note: str | None = None

    def score(self, value: float, count: int) -> float:
        """The headline on [0, 100], of the harness's value over `count` documents."""
        return value * self.scale * (self.documents / count if self.documents else 1.0)


def same_option(value: dict) -> float:
    """1 where the answer names the right option."""
    return float(value["pred"].strip().lower() == value["answer"].strip().lower())


def mmmu(value: dict) -> float:
    """1 where lmms-eval counts the answer as right."""
    from lmms_eval.tasks.mmmu.utils import evaluate_mmmu

    _, accuracy = evaluate_mmmu([value])
    return float(accuracy["acc"])


def one_of_fixed(value: dict) -> list[float]:
    """[points, of], of a benchmark whose own value is over a fixed number of documents."""
    return [float(value["score"]), 1.0]
