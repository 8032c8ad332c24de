"""Cells of the table that say more than a number."""

import pytest

from llava.bench.results import Line
from llava.bench.table import _rate, step_seconds


@pytest.mark.parametrize(
    ("rate", "tried", "cell"),
    [
        (1e-3, [1e-3, 2e-3, 4e-3], "<0.001"),
        (2e-3, [1e-3, 2e-3, 4e-3], "0.002"),
        (4e-3, [1e-3, 2e-3, 4e-3], ">0.004"),
        (2e-3, [], "0.002"),
        (None, [1e-3, 2e-3], "-"),
    ],
)
def test_a_rate_at_an_end_of_the_grid_is_marked(rate, tried, cell):
    measured = {"rate": rate, "grid": [[one, 1.0] for one in tried]}
    assert _rate(Line("digit_pages", "none", measured, None)) == cell


def test_a_step_takes_the_processors_time_on_a_cpu_and_the_clocks_on_a_gpu():
    seconds = {"step_seconds": {"clock": 3.0, "processor": 1.0}}
    assert [step_seconds(seconds | {"device": device}) for device in ("cpu", "cuda")] == [1.0, 3.0]
