"""The recorded tables, of benchmarks/FUSION.md and of the quickstart, are computed from the results in benchmarks."""

import pytest

from llava.bench.controls import control_cells
from llava.bench.results import read_results, table_lines
from llava.bench.seeds_table import ALL, Line, seed_lines
from llava.bench.table import columns
from llava.text_files import read_json
from tests.paths import ROOT

QUESTIONS = {
    "all 600": ALL,
    "read a place": "place",
    "read a row": "read",
    "count the digits": "count",
    "compare the rows": "compare",
}


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


@pytest.mark.parametrize(
    ("document", "of_questions"), [("docs/quickstart.md", True), ("README.md", False)], ids=["quickstart", "readme"]
)
def test_the_tables_of_the_quickstart_are_those_of_its_results(document, of_questions):
    text = (ROOT / document).read_text(encoding="utf-8")
    shown = [
        [cell.strip(" `") for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")
    ]
    expected = _by_arm(_lines("four_arms")) + (_by_question(_lines("grid_manager")) if of_questions else [])
    assert [row for row in expected if row not in shown] == []


def _lines(file: str) -> dict[tuple[str, str], Line]:
    joined = read_json(ROOT / f"benchmarks/quickstart/{file}.json")
    return {(line.arm, line.kind): line for line in seed_lines(joined)}


def _by_question(lines: dict[tuple[str, str], Line]) -> list[list[str]]:
    """The mean of each kind of question, the seeds' scores, their spread, and the blind models' mean."""
    rows = []
    for question, kind in QUESTIONS.items():
        line, blind = lines["grid_manager", kind], lines["grid_manager_blind", kind]
        by_seed = ", ".join(f"{score:.1f}" for score in line.score.by_seed)
        rows.append([question, str(line.score.score), by_seed, f"{line.spread:.1f}", str(blind.score.score)])
    return rows


def _by_arm(lines: dict[tuple[str, str], Line]) -> list[list[str]]:
    """The mean of all questions, the seeds' scores, and the mean of each kind, with intervals."""
    rows = []
    for arm in ("baseline", "manager", "grid", "grid_manager"):
        whole, *kinds = (lines[arm, kind].score for kind in QUESTIONS.values())
        by_seed = ", ".join(f"{score:.1f}" for score in whole.by_seed)
        rows.append([arm, str(whole.score), by_seed, *(str(score.score) for score in kinds)])
    return rows
