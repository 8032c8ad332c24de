"""Table IV measured at tiny widths: the command, exact numbers of parameters and operations, and the table by hand."""

import json
import re

import pytest

from llava.bench.budget import BudgetSettings, title
from llava.bench.budget_table import ratios, render_markdown, render_text
from llava.cli import main

ARMS = ["baseline", "manager", "grid", "grid_manager"]


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> dict:
    """What the command writes, with its Markdown."""
    out = tmp_path_factory.mktemp("budget") / "out"
    words = ["--tiny", "--device", "cpu", "--rounds", "2", "--image", "100x70", "--batch_size", "1"]
    assert main(["bench", "budget", "--out", str(out), *words]) == 0
    return json.loads((out / "budget.json").read_text()) | {"markdown": (out / "budget.md").read_text()}


def test_the_command_measures_every_arm_in_every_round(results):
    assert list(results["arms"]) == ARMS
    for of_arm in results["arms"].values():
        for phase in ("training", "inference"):
            assert len(of_arm[phase]) == 2
            assert all(one["seconds"] > 0 for one in of_arm[phase])
    assert [of_arm["crops"] for of_arm in results["arms"].values()] == [1, 1, 5, 5]  # 100x70 fills 2x2 tiles of 56
    assert "TINY widths, which say nothing, float32, sdpa, images of 100x70, 1 at once" in results["title"]
    markdown = results["markdown"]
    assert markdown == render_markdown(results)
    assert len(re.findall(r"^\| \+ Grid \+ Manager ", markdown, re.MULTILINE)) == 3


def test_parameters_are_exact(results):
    """At the real sizes 6 managers of 13 maps and 13 layer embeddings of width 896; at tiny ones 1 of 2, 32 wide."""
    whole = [of_arm["whole_parameters"] for of_arm in results["arms"].values()]
    assert whole == [893_618_208, 893_618_208 + 7 * 13 * 896] * 2
    measured = [of_arm["parameters"] for of_arm in results["arms"].values()]
    assert measured[1] - measured[0] == measured[3] - measured[2] == 2 * 2 * 32


def test_the_floor_of_the_operations(results):
    """To a crop of 729 tokens managers add 12 maps through the projector, and 6 sums of 13."""
    of_arms = results["arms"]
    for phase in ("training", "inference"):
        floor = of_arms["manager"]["whole_flops"][phase] / of_arms["baseline"]["whole_flops"][phase]
        assert 1.02 < floor < 1.03
    maps, sums = 12 * 729 * 2 * (1152 + 896) * 896, 729 * 6 * 13 * 2 * 896
    added = of_arms["manager"]["whole_flops"]["inference"] - of_arms["baseline"]["whole_flops"]["inference"]
    assert added == maps + sums


def made_up() -> dict:
    """Three rounds: seconds of the baseline 1, 2, 4; of each arm further, as many times as here."""
    times = {"baseline": (1, 1, 1), "manager": (1.1, 1.0, 1.3), "grid": (5, 4, 3), "grid_manager": (6, 6, 6)}
    arms = {}
    for arm, of_arm in times.items():
        rounds = [{"seconds": base * time, "mib": 100.0 * time} for base, time in zip((1, 2, 4), of_arm, strict=True)]
        flops = {"training": int(1000 * of_arm[1]), "inference": 1000}
        arms[arm] = {"parameters": 10, "whole_parameters": 20, "flops": flops, "whole_flops": flops}
        arms[arm] |= {"training": rounds, "inference": rounds}
    return {"title": "Title", "settings": {"batch_size": 2}, "arms": arms}


def test_the_tables_arithmetic_by_hand():
    results = made_up()
    assert ratios(results, "training", "manager") == pytest.approx([1.1, 1.0, 1.3])
    rows = [re.split(" {2,}", line) for line in render_text(results).splitlines()]
    manager, grid = (next(row for row in rows if row[0] == name and len(row) == 11) for name in ("+ Manager", "+ Grid"))
    # 1.1, 2.0 and 5.2 s of two samples; the interval of a median of three is their range.
    assert manager[1:5] == ["1,000", "550 to 2,600", "x1.100", "[1.000, 1.300]"]
    assert manager[5:] == ["x1.000", "x1.000", "110", "x1.10", "12.22", "x1.03"]
    assert grid[1:3] == ["4,000", "2,500 to 6,000"]
    assert "| 6,000 | 3,000 to 12,000 | x6.000 | [6.000, 6.000] |" in render_markdown(results)
    assert grid[3:] == ["x4.000", "[3.000, 5.000]", "x4.000", "x4.000", "400", "x4.00", "51.95", "x4.39"]


def test_what_was_not_measured_is_absent():
    results = made_up()
    for of_arm in results["arms"].values():
        of_arm["training"] = [one | {"mib": None} for one in of_arm["training"]]
    assert "| 550 to 2,600 | x1.100 | [1.000, 1.300] | x1.000 | x1.000 | - | - | 12.22 |" in render_markdown(results)


@pytest.mark.parametrize(
    ("layers", "told"),
    [
        ((None, None), ": the real sizes, bfloat16, sdpa, "),
        ((26, 24), ": the real sizes, bfloat16, sdpa, "),
        ((4, None), ": CUT to 4 of 26 layers of the tower, 24 of 24 of the language model, bfloat16, sdpa, "),
    ],
)
def test_a_cut_is_named(layers, told):
    assert told in title(BudgetSettings("cpu", "bfloat16", (640, 480), 2, 4, 10, *layers))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--image", "640"], "--image must be WIDTHxHEIGHT in pixels, such as 640x480; found '640'"),
        (["--rounds", "0"], "--rounds must be above 0; found 0"),
        (["--vision_layers", "27"], "--vision_layers must be at most 26; found 27"),
    ],
)
def test_mistakes_are_one_clear_line(tmp_path, capsys, words, message):
    assert main(["bench", "budget", "--out", str(tmp_path / "out"), *words]) == 2
    assert capsys.readouterr().err == f"error: {message}\n"
    assert not (tmp_path / "out").exists()
