"""What tables of scores over seeds write in their cells."""

from llava.bench.statistics import RowScore
from llava.eval.report.intervals import Difference

ABSENT = "-"


def marked(score: RowScore) -> str:
    """The difference to the reference, with a star where it is told as one."""
    if score.difference is None:
        return ABSENT
    return f"{str(score.difference).partition(' ')[0]}{'*' if score.differs else ''}"


def by_seed(score: RowScore) -> str:
    """The difference to the reference with each seed."""
    return " ".join(f"{round(value, 1) + 0.0:+.1f}" for value in score.difference_by_seed) or ABSENT


def interval(difference: Difference | None) -> str:
    """The interval of a difference, without the difference."""
    return ABSENT if difference is None else str(difference).partition(" ")[2]
