"""Which splits of which data sets are meant by the words of `--tasks`, for a two-tower model. Imports no torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llava.arguments import unknown
from llava.constants import DATA_OPTION
from llava.errors import LlavaError
from llava.two_tower.tasks import MIXTURES, SETS, TASKS, TaskSet

RERANKED = 128  # of data of one's own, as of Flickr30K
PACKAGE = Path(__file__).parents[3]


@dataclass(frozen=True)
class ChosenSplit:
    """A split that a model is asked.

    name: of the results, SET.SPLIT. task: a name in TASKS. mixture: the file that names its data. reranked: see
    TaskSet; 0 ranks by ITC alone.
    """

    name: str
    task: str
    split: str
    mixture: Path
    reranked: int | None


def choose_split(word: str, model_task: str, mixture: Path | None, reranked: int | None = None) -> ChosenSplit:
    """What a word of `--tasks` means: SET.SPLIT, or SET, of which it is the validation split.

    Args:
        word: SET is a name in SETS, or the model's task, for data of one's own.
        model_task: What the model was fine-tuned for.
        mixture: What `--data` names; None is the set's own.
        reranked: What `--rerank` says, see TaskSet; None as the set says.

    Raises:
        LlavaError: There is no such set, it is another task's, or it has no data; or `reranked` is for no retrieval.
    """
    name, _, split = word.partition(".")
    sets = {key: row for key, row in SETS.items() if row.task != "pretrain"}
    row = sets.get(name) or (TaskSet(title=name, task=name, mixture="") if name == model_task else None)
    if row is None:
        raise LlavaError(unknown("task", name, [*sets, *TASKS]))
    if row.task != model_task:
        fitting = ", ".join(key for key, other in sets.items() if other.task == model_task) or "none"
        raise LlavaError(f"{name} is of the task {row.task}, but the model's is {model_task} (its sets: {fitting})")
    if mixture is None and not row.mixture:
        raise LlavaError(f"{name} has no data of its own: name a mixture with {DATA_OPTION}")
    file = mixture or PACKAGE / MIXTURES / row.mixture
    if row.task == "retrieval":
        reranked = (row.reranked or RERANKED) if reranked is None else reranked
    elif reranked is not None:
        raise LlavaError(f"--rerank is for retrieval, but {name} is of the task {row.task}")
    return ChosenSplit(f"{name}.{split or row.val}", row.task, split or row.val, file, reranked)


def default_words(model_task: str) -> Sequence[str]:
    """The validation splits of the sets of a task."""
    words = [name for name, row in SETS.items() if row.task == model_task and row.task != "pretrain"]
    if not words:
        raise LlavaError(f"a model of the task {model_task} answers no task; fine-tune it first (docs/two_tower.md)")
    return words
