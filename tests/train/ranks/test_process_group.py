"""What the first rank decides for all, and what all tell each other."""

import json
import os
from pathlib import Path

import pytest
from torch import distributed

from llava.errors import DataError
from llava.train.ranks.process_group import gathered, on_first_rank, rank
from tests.train.run_ranks import run_ranks


def fail():
    raise DataError(f"row {rank()} is bad")


def ask(out: Path) -> None:
    """One rank: writes whose values it was given, what all gave, and how a fault of the first rank ends it."""
    if "RANK" in os.environ:
        distributed.init_process_group("gloo")
    given, everything = on_first_rank(lambda: {"rank": rank()}), gathered([rank()] * (rank() + 1))
    try:
        end = on_first_rank(fail)
    except (DataError, SystemExit) as raised:
        end = f"{type(raised).__name__} {raised}"
    facts = [given, everything, end, distributed.is_initialized()]
    Path(out, f"{rank()}.json").write_text(json.dumps(facts))


@pytest.mark.parametrize("processes", [None, 3])
def test_the_first_rank_decides_and_alone_tells_a_fault(tmp_path, processes):
    run_ranks(ask, tmp_path, processes=processes, folder=tmp_path, timeout=120)
    everything = [0, 1, 1, 2, 2, 2] if processes else [0]
    ends = ["DataError row 0 is bad"] + ["SystemExit 2"] * ((processes or 1) - 1)
    facts = [json.loads((tmp_path / f"{number}.json").read_text()) for number in range(len(ends))]
    assert facts == [[{"rank": 0}, everything, end, False] for end in ends]
