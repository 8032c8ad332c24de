"""The paper's numbers: sums of its columns, taken from its text apart from this code, and what it derives itself."""

import json
from pathlib import Path

import pytest

from llava.bench.paper import paper_cells
from llava.cli import main
from llava.paper import CROSS_MODAL_LAYERS, OVERALL_BY_ARM, TABLES

# {table: {column: (sum, how many runs have it)}}
SUMS = {
    "I": {"VQAv2 test-dev": (840.05, 11), "Flickr30K R_MEAN": (1028.38, 11)},
    "II": {"VQAv2 test-dev": (377.73 + 380.89, 10), "Flickr30K R_MEAN": (464.07 + 467.93, 10)},
    "III": {
        "VQAv2 test-dev": (1141.24, 15),
        "VQAv2 test-std": (1071.66, 14),
        "SNLI-VE dev": (973.75, 12),
        "SNLI-VE test": (972.64, 12),
        "NLVR2 dev": (1055.11, 13),
        "NLVR2 test-P": (1062.58, 13),
        "Flickr30K IR@1": (1033.81, 13),
        "Flickr30K TR@1": (1192.67, 13),
    },
    "IV": {"training ms": (130.18, 4), "inference ms": (76.43, 4), "mean of 20": (211.36, 4)},
}


@pytest.mark.parametrize(("name", "column"), [(name, column) for name, of in SUMS.items() for column in of])
def test_columns_are_those_of_the_paper(name, column):
    values = [row[column] for row in TABLES[name].rows.values() if column in row]
    assert (pytest.approx(sum(values)), len(values)) == SUMS[name][column]


def test_what_the_paper_derives_follows():
    """The differences and ratios in the parentheses of Tables II and IV."""
    rows = TABLES["II"].rows
    gains = {"VQAv2 test-dev": [0.61, 0.71, 0.52, 0.74, 0.58], "Flickr30K R_MEAN": [0.86, 0.91, 0.83, 0.64, 0.62]}
    for column, expected in gains.items():
        pairs = [(rows[f"ManagerTower, L_C {n}"], rows[f"BridgeTower, L_C {n}"]) for n in CROSS_MODAL_LAYERS]
        assert [round(ours[column] - theirs[column], 2) for ours, theirs in pairs] == expected
    assert rows["BridgeTower, L_C 6"] == TABLES["I"].rows["BridgeTower"]
    assert rows["ManagerTower, L_C 6"] == TABLES["I"].rows["AAUM, fused query"]
    base, *others = TABLES["IV"].rows.values()
    assert [round(row["training ms"] / base["training ms"], 2) for row in others] == [1.03, 4.39, 4.58]
    assert [round(row["inference ms"] / base["inference ms"], 2) for row in others] == [1.04, 1.68, 1.75]
    assert [round(row["mean of 20"] - base["mean of 20"], 2) for row in others] == [1.06, 3.26, 4.60]
    assert OVERALL_BY_ARM == {"baseline": 50.61, "manager": 51.67, "grid": 53.87, "grid_manager": 55.21}


def test_a_run_keeps_its_place_and_its_decimals():
    head, *rows = paper_cells(TABLES["III"], {"ManagerTower, base": "12.3"})
    assert head[:3] == ["run", "M images", "VQAv2 test-dev"]
    assert head[-1] == "ours"
    (ours,) = [row for row in rows if row[0] == "ManagerTower, base"]
    assert " ".join(ours) == "ManagerTower, base 4 79.39 79.15 81.26 81.44 82.81 83.34 86.56 95.64 12.3"
    (unimo,) = [row for row in rows if row[0] == "UNIMO, base"]
    assert unimo[6:] == ["-", "-", "74.66", "89.70", "-"]


def test_the_command_prints_and_writes_tables(tmp_path, capsys):
    files = ["--markdown", str(tmp_path / "paper.md"), "--json", str(tmp_path / "paper.json")]
    assert main(["bench", "paper", "IV", *files]) == 0
    assert "manager             893.70        12.22         14.54       51.67\n" in capsys.readouterr().out
    assert "| manager | 893.70 | 12.22 | 14.54 | 51.67 |" in (tmp_path / "paper.md").read_text()
    of_grid = json.loads((tmp_path / "paper.json").read_text())["IV"]["rows"]["grid"]
    assert of_grid == {"M parameters": 893.62, "training ms": 51.95, "inference ms": 23.47, "mean of 20": 53.87}
    assert main(["bench", "paper"]) == 0
    assert main(["bench", "paper", "V"]) == 2
    assert "unknown table 'V'" in capsys.readouterr().err


def test_the_page_of_the_two_towers_states_the_papers_tables():
    page = Path("docs/two_tower.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line[:2] == "| "]
    stated = {row[0]: row[1:-1] for row in rows if not row[0].startswith(("run", "---"))}
    paper = {run: cells for name in ("I", "II") for run, *cells in paper_cells(TABLES[name])[1:]}
    of_4m = {run: cells[1:] for run, *cells in paper_cells(TABLES["III"])[1:]}
    assert len(stated) == len(paper) + 3
    assert stated == {**paper, **{run: of_4m[run] for run in stated.keys() - paper.keys()}}
