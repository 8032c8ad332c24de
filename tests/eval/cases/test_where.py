"""The grammar of `--where`."""

import pytest

from llava.errors import LlavaError
from llava.eval.cases.where import read_where

RUNS = ["grid", "grid_manager", "a/base line"]


@pytest.mark.parametrize(
    ("text", "names", "fits"),
    [
        ("grid wrong, grid_manager right", ["grid", "grid_manager"], [(0.4, 0.5), (0.0, 1.0)]),
        ("grid wrong and grid_manager right", ["grid", "grid_manager"], [(0.4, 0.5), (0.0, 1.0)]),
        ("  grid   right ", ["grid"], [(0.6, 0.7), (1.0, 0.0), (0.5, None), (0.8, 0.9)]),
        ("grid worse than grid_manager", ["grid", "grid_manager"], [(0.4, 0.5), (0.0, 1.0), (0.6, 0.7), (0.8, 0.9)]),
        ("\"grid_manager\" better than 'grid',grid wrong", ["grid_manager", "grid"], [(0.4, 0.5), (0.0, 1.0)]),
        ('"a/base line" right', ["a/base line"], []),
    ],
)
def test_what_fits(text, names, fits):
    pairs = [(0.4, 0.5), (0.0, 1.0), (0.6, 0.7), (1.0, 0.0), (0.5, None), (None, 0.9), (0.8, 0.9), (0.0, 0.0)]
    wanted, used = read_where(text, RUNS, 0.5)
    assert used == names
    assert [pair for pair in pairs if wanted(dict(zip(RUNS, (*pair, None))))] == fits


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("grd wrong", "--where: unknown run 'grd'; did you mean grid?"),
        ("xyz wrong", "--where: unknown run 'xyz'; choose of grid, grid_manager, a/base line"),
        (
            "grid wrnog",
            "--where: behind 'grid' comes right, wrong, better or worse; found 'wrnog'; did you mean wrong?",
        ),
        ("grid", "--where: behind 'grid' comes right, wrong, better or worse; found the end"),
        ("grid better grid_manager", "--where: behind 'better' comes than; found 'grid_manager'"),
        (
            "grid worse than",
            "--where: a run's name is missing; the runs are grid, grid_manager, a/base line; found the end",
        ),
        ("grid right grid_manager wrong", "--where: behind a term comes a comma, or and; found 'grid_manager'"),
        (
            "grid right,",
            "--where: a run's name is missing; the runs are grid, grid_manager, a/base line; found the end",
        ),
        ("", "--where: a run's name is missing; the runs are grid, grid_manager, a/base line; found the end"),
        ('"grid right', "--where: quotation marks without an end: '\"grid right'"),
    ],
)
def test_what_is_wrong_is_named(text, message):
    with pytest.raises(LlavaError) as error:
        read_where(text, RUNS, 0.5)
    assert str(error.value) == message
