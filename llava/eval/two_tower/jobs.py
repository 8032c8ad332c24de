"""`llava eval` of a two-tower model: its jobs, after checking all that can be known before a model is loaded."""

from argparse import Namespace
from pathlib import Path

from llava.checkpoint.folder import CONFIG, check_folder, model_type_of, weights_id
from llava.engine.checks import SPREAD, check_dtype
from llava.errors import LlavaError
from llava.eval.job import Job
from llava.eval.two_tower.names import ChosenSplit, choose_split, default_words
from llava.text_files import read_json
from llava.two_tower.parts import MODEL_TYPE
from llava.two_tower.tasks import TASKS

PROTOCOL = "two-tower"  # in place of the ways in which lmms-eval asks
MODULE = "llava.eval.two_tower.work"
NOT_TAKEN = ("suite", "image_noise", "judge", "judge_model")


def is_two_tower(model: Path) -> bool:
    """Whether a folder holds a model of this family; what is wrong with it is told elsewhere."""
    try:
        return model_type_of(model) == MODEL_TYPE
    except LlavaError:
        return False


def two_tower_jobs(args: Namespace) -> list[Job]:
    """A job for each word of `--tasks`.

    Raises:
        LlavaError: For arguments that this family does not take, and for a model or data that are not there.
    """
    check_folder(args.model, model_types=(MODEL_TYPE,))
    check_dtype(args.dtype)
    for name in NOT_TAKEN:
        if vars(args).get(name):
            raise LlavaError(f"--{name} is for models that generate text; {args.model} is a two-tower model")
    if args.device == SPREAD:
        raise LlavaError(f"--device {SPREAD} is for models that generate text; name one device")
    if args.data is not None and not args.data.is_file():
        raise LlavaError(
            f"--data {args.data}: a two-tower model's is a mixture of pairs or a data file (docs/evaluate.md)"
        )
    task = read_json(args.model / CONFIG).get("task", "pretrain")
    words = args.tasks.split(",") if args.tasks else default_words(task)
    choices = {choice.name: choice for choice in (choose_split(word, task, args.data, args.rerank) for word in words)}
    for choice in choices.values():
        _check_data(choice)
    weights = weights_id(args.model)  # last: it reads the whole checkpoint
    return [
        Job(
            model=str(args.model),
            task=name,
            data=None if args.data is None else str(args.data),
            out=str(args.out),
            limit=args.limit,
            batch_size=args.batch_size,
            device=args.device,
            dtype=args.dtype,
            protocol=PROTOCOL,
            mode="predict" if args.predict_only else "run",
            weights=weights,
            rerank=args.rerank,
        )
        for name in choices
    ]


def _check_data(choice: ChosenSplit) -> None:
    from llava.data.pairs.mixture import read_pair_mixture  # imports pyarrow

    mixture = read_pair_mixture(choice.mixture, TASKS[choice.task].pairs)
    missing = [file for entry in mixture.entries(choice.split) for file in entry.files if not file.is_file()]
    if missing:
        raise LlavaError(f"{choice.name}: mixture {mixture.file} names {missing[0]}, which is not there; --data FILE")
