"""The recorded tables of benchmarks/FUSION.md are computed from the results beside it."""

import pytest

from llava.bench.controls import control_cells
from llava.bench.results import read_results, table_lines
from llava.bench.table import columns
from tests.paths import ROOT


@pytest.mark.parametrize(("name", "section"), [("digit_pages", "## Results"), ("capacity", "## Capacity")])
def test_the_recorded_tables_are_those_of_the_results(name, section):
    results = read_results(ROOT / f"benchmarks/fusion/{name}.json")
    cells, lines = dict(columns(results)), {line.row: line for line in table_lines(results)}
    text = (ROOT / "benchmarks/FUSION.md").read_text(encoding="utf-8")
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text[text.index(section) :].partition("\n## ")[0].splitlines()
        if line.startswith("|") and not line.startswith("| ---")
    ]
    heads, shown, controls = None, [], []
    for first, *others in rows:
        if first == "row":
            heads = others
        if heads and heads[0] == "control":
            controls += [[first, *others]]
        elif first in lines:
            shown += [(first, head) for head in heads]
            assert others == [cells[head](lines[first]) for head in heads], first
    assert set(shown) == {(row, head) for row in lines for head in cells if head != "row"}
    assert len(shown) == len(set(shown))
    assert controls == control_cells(results)
