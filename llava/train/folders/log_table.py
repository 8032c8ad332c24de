"""What a run logged, as a table that any program reads."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llava.checkpoint.folder import LOG


def write_log(history: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """Writes LOG: a row for each entry of transformers' log_history, a column for each name that any of them has.

    Training steps and evaluations are rows of their own; what an entry does not have stays empty.
    """
    columns = list(dict.fromkeys(["step", "epoch", *(name for entry in history for name in entry)]))
    with open(folder / LOG, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(history)
