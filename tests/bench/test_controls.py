"""Controls beside the rows that they are controls of."""

from itertools import product

import numpy as np
import pytest

from llava.bench.controls import control_cells, control_lines
from llava.bench.rows import LIKE, all_rows, controlled

QUESTIONS = [{"document": document, "kind": "place"} for document in ("a", "a", "b", "c")]
RIGHT = {  # of each row, of each seed
    "none": ["1111", "0111"],
    "manager": ["1110", "1100"],
    "manager_last": ["1000", "0110"],
    "none_like_manager": ["1111"],  # a seed less than the bench has
    "dci": ["0000", "1111"],
    "dci_zero": ["0001", "1111"],
    "sci_zero": ["0001", "1111"],  # sci itself was left out
}


def of_runs(right: list[str]) -> dict:
    return {"seeds": {str(seed): {"right": [int(one) for one in of_seed]} for seed, of_seed in enumerate(right, 1)}}


@pytest.fixture
def results() -> dict:
    rows = {row: of_runs(right) for row, right in RIGHT.items()}
    return {"seeds": 2, "data": {"digit_pages": {"questions": QUESTIONS, "rows": rows}}}


def test_a_row_is_compared_with_its_control(results):
    lines = {(line.row, line.control): line.score for line in control_lines(results)}
    assert list(lines) == [("manager", "manager_last"), ("dci", "dci_zero")]
    assert lines["manager", "manager_last"].difference_by_seed == [50.0, 0.0]
    assert lines["manager", "manager_last"].difference.value == 25.0
    assert lines["dci", "dci_zero"].difference_by_seed == [-25.0, 0.0]


def test_the_bootstrap_draws_documents_and_seeds_for_both_rows_together(results):
    """The interval is that of all 27 draws of three documents with 4 of two seeds, each of which is as likely."""
    documents, (row, control) = {"a": [0, 1], "b": [2], "c": [3]}, (RIGHT["manager"], RIGHT["manager_last"])
    drawn = []
    for names, seeds in product(product(documents, repeat=3), product(range(2), repeat=2)):
        questions = [number for name in names for number in documents[name]]
        drawn.append(
            sum(
                100 * (int(row[seed][number]) - int(control[seed][number])) / len(questions) / 2
                for seed in seeds
                for number in questions
            )
        )
    interval = control_lines(results)[0].score.difference
    assert (interval.low, interval.high) == pytest.approx(np.percentile(drawn, (2.5, 97.5)))


def test_without_controls_there_is_no_table(results):
    results["data"]["digit_pages"]["rows"] = {row: of_runs(RIGHT[row]) for row in ("none", "manager")}
    assert control_cells(results) == []


def test_every_row_that_says_so_is_a_control_of_a_row():
    rows = {row.name: row for row in all_rows()}
    controls = {name: controlled(name) for name in rows if controlled(name) is not None}
    told = {name for name, row in rows.items() if "control" in row.about.lower()}
    assert told - set(controls) == {"manager_in_order"}
    assert set(controls.values()) <= set(rows)
    assert {name: rows[name].like for name in controls if name.startswith(LIKE)} == {
        name: row for name, row in controls.items() if name.startswith(LIKE)
    }
