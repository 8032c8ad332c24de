"""The table of several arms and seeds, for the terminal and as Markdown, computed from what join_seeds gives alone."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from llava.bench.cells import ABSENT, interval, marked
from llava.bench.statistics import RowScore, score_rows
from llava.text_table import markdown_table, text_table

ALL = "all"  # in place of a kind: every question


@dataclass(frozen=True)
class Line:
    """A line of the table: an arm on the questions of one kind. spread: largest - smallest score of a seed."""

    kind: str
    arm: str
    questions: int
    score: RowScore

    @property
    def spread(self) -> float:
        """In points of a percent."""
        return max(self.score.by_seed) - min(self.score.by_seed)


def seed_lines(joined: dict[str, Any]) -> list[Line]:
    """All questions first, then each kind; in each the arms in their order."""
    kinds = np.array([question["kind"] for question in joined["questions"]])
    documents = np.array([question["document"] for question in joined["questions"]])
    right = {
        arm: np.array([runs[str(seed)]["right"] for seed in joined["seeds"]]) for arm, runs in joined["arms"].items()
    }
    lines = []
    for kind in (ALL, *dict.fromkeys(kinds.tolist())):
        of_kind = kinds == kind if kind != ALL else np.ones(len(kinds), bool)
        scores = score_rows(
            f"{joined['task']} {kind}",
            documents[of_kind].tolist(),
            kinds[of_kind].tolist(),
            {arm: answers[:, of_kind] for arm, answers in right.items()},
            joined["reference"],
        )
        lines += [Line(kind, arm, int(of_kind.sum()), scores[arm]) for arm in right]
    return lines


def render_text(joined: dict[str, Any]) -> str:
    """Aligned, a blank line before each kind, then what the columns mean."""
    rows = _rows(joined)
    head, *lines = text_table(rows, right=[False, False, True]).split("\n")
    starts = {row[0] for row in rows[1:]}
    printed = [head]
    for row, line in zip(rows[1:], lines, strict=True):
        if row[0] in starts:
            starts.remove(row[0])
            printed.append("")
        printed.append(line)
    return "\n".join([*printed, "", *_notes(joined)]) + "\n"


def render_markdown(joined: dict[str, Any]) -> str:
    """One table, then what its columns mean."""
    return "\n\n".join([markdown_table(_rows(joined)), "\n".join(f"- {note}" for note in _notes(joined))]) + "\n"


def _rows(joined: dict[str, Any]) -> list[list[str]]:
    head = ["questions", "arm", "n", _metric(joined), "by seed", "spread", f"- {joined['reference']}", "boot", "t"]
    return [head, *map(_cells, seed_lines(joined))]


def _metric(joined: dict[str, Any]) -> str:
    return str(joined["metric"]).replace("_", " ")


def _cells(line: Line) -> list[str]:
    score = line.score
    by_seed = " ".join(f"{value:.1f}" for value in score.by_seed)
    cells = [line.kind, line.arm, str(line.questions), str(score.score), by_seed, f"{line.spread:.1f}"]
    if score.difference is None:
        return [*cells, ABSENT, ABSENT, ABSENT]
    return [*cells, marked(score), interval(score.difference), interval(score.difference_t)]


def _notes(joined: dict[str, Any]) -> list[str]:
    seeds, documents = joined["seeds"], {question["document"] for question in joined["questions"]}
    blind = [arm for arm, runs in joined["arms"].items() if any(run["image_noise"] for run in runs.values())]
    numbers = ", ".join(map(str, seeds))
    notes = [
        f"{_metric(joined)}: percent of the questions of {joined['task']}, mean over the seeds {numbers}, with the 95% "
        f"interval of the bootstrap over {len(documents)} documents and {len(seeds)} seeds",
        "by seed: of each; spread: the largest less the smallest",
        f"- {joined['reference']}: paired difference; boot: its 95% interval of the bootstrap over documents and "
        "seeds; t: Student's, over the seeds' differences; * where both leave out 0",
    ]
    if blind:
        notes.append(f"every image replaced by noise: {', '.join(blind)}")
    return [*notes, *joined["warnings"]]
