"""A report's four written forms."""

import csv
import io
import json

import pytest

from llava.eval.report.comparison import build_report
from llava.eval.report.tables import CSV_COLUMNS, render_csv, render_json, render_markdown, render_text
from tests.eval.report.run_folders import JUDGE, save_all_benchmarks, save_benchmark, save_digit_pages, scores_of

ARMS = ("baseline", "manager", "grid", "grid_manager")


@pytest.fixture(scope="module")
def arms(tmp_path_factory):
    """A report of the four arms; the last has two GQA documents more right."""
    folder = tmp_path_factory.mktemp("arms")
    for arm in ARMS:
        save_all_benchmarks(folder / arm, arm=arm)
    save_benchmark(
        folder / "grid_manager", "gqa", [1.0] * 5 + [0.0] * 5, arm="grid_manager", notes=["two more are right"]
    )
    return build_report([folder / arm for arm in ARMS])


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits")
    save_digit_pages(folder / "grid_manager", 1.0, 1.0, 1.0, 0.0, anls=(1.0, 1.0, 1.0, 0.5))
    save_digit_pages(folder / "blind", 0.0, 1.0, image_noise=True)
    return build_report([folder / "grid_manager", folder / "blind"])


@pytest.fixture(scope="module")
def partial(tmp_path_factory):
    folder = tmp_path_factory.mktemp("partial")
    save_all_benchmarks(folder / "whole", arm="grid")
    save_all_benchmarks(folder / "part", but=("gqa",), protocol="harness")
    judge = {**JUDGE, "failed_reviews": 3}
    save_benchmark(folder / "part", "mmvet", scores_of("mmvet"), judge=judge, score=None, protocol="harness")
    return build_report([folder / "whole", folder / "part"], allow_missing=True)


@pytest.mark.parametrize("width", [100, 110, 120])
def test_text_of_four_arms_fits_a_terminal(arms, width):
    text = render_text(arms, width)
    assert max(map(len, text.splitlines())) <= width
    assert text.startswith("All 20 benchmarks\n\nbenchmark ")
    assert text.count("\nVQAv2 ") == text.count("\nOverall (20) ") == (3 if width < 120 else 2)
    heads = [line.split() for line in text.splitlines() if line.startswith("benchmark ")]
    assert [head for line in heads for head in line if head in ARMS][:4] == list(ARMS)


def test_text_of_benchmarks(arms):
    lines = render_text(arms, 120).splitlines()
    # Wilson's intervals of 3 and of 5 in 10; no document of the other arms differs from the first arm's.
    gqa = [line.split("  ") for line in lines if line.startswith("GQA")]
    cells = [[cell.strip() for cell in line if cell] for line in gqa]
    assert cells[0] == ["GQA", "10", *["30.0 [10.8, 60.3]"] * 3, "50.0 [23.7, 76.3]"]
    assert cells[1] == ["GQA", "+0.0 [+0.0, +0.0]", "+0.0 [+0.0, +0.0]", "+20.0 [+0.0, +50.0]", "not given"]
    (overall,) = [line for line in lines if line.startswith("Overall") and "50.61" in line]
    assert overall.endswith("50.61/51.67/53.87/55.21")
    notes = " ".join(" ".join(lines).split())
    assert "grid_manager: models/tiny (weights 0123456789ab), images as they are, paper protocol, float32 on" in notes
    assert "Judge judge-1, its prompts' versions: dc100_en a1b2, live_bench_2407 a1b2, live_bench_2409 a1b2," in notes
    assert "Task version 1.0: ai2d, chartqa, dc100_en," in notes
    assert "lmms-eval 0.7.3, torch 2.13.0, 2026-01-02" in notes
    assert "Image kind and resolution: only of the benchmarks of which the paper states them (SEED-Bench," in notes
    assert lines[-1] == "gqa: two more are right"


def test_text_of_other_tasks(digits):
    text = render_text(digits)
    head, rule, *_ = text.splitlines()
    assert head.split() == ["task", "metric", "grid_manager", "blind"]
    assert set(rule) == {"-", " "}
    assert "digit_pages  exact_match  75.0 [30.1, 95.4] n=4   50.0 [9.5, 90.5] n=2\n" in text
    assert "blind: models/tiny (weights 0123456789ab), images replaced by noise" in text
    assert "Overall" not in text


def test_what_is_partial_is_said(partial):
    text = render_text(partial)
    title = "PARTIAL AVERAGES, overall of 18 of 20 benchmarks: part (missing: gqa; 3 failed reviews: mmvet)"
    assert text.startswith(f"{title}\n")
    assert "WARNING different protocol: paper (whole), harness (part)\n" in text
    rows = {line.split("  ")[0]: line for line in text.splitlines()}
    assert "missing" in rows["GQA"]
    assert "3 failed reviews" in rows["MMVet"]
    assert rows["Overall (18 of 20)"].endswith("53.87 (of 20)")
    markdown = render_markdown(partial)
    assert markdown.startswith(f"## {title}\n\n> **Warning:** different protocol: paper (whole), harness (part)\n\n|")
    assert json.loads(render_json(partial))["title"] == title


def test_markdown_has_one_table_of_whole_rows(arms, digits):
    rows = [line for line in render_markdown(arms).splitlines() if line.startswith("|")]
    assert len(rows) == 2 + 20 + 10
    assert {row.count("|") for row in rows} == {1 + 2 + 4 + 3 + 1}
    assert rows[0] == (
        "| benchmark | n | baseline | manager | grid | grid_manager | manager - baseline | grid - baseline | "
        "grid_manager - baseline | paper: baseline / manager / grid / grid_manager |"
    )
    assert "| digit_pages | exact_match | 75.0 [30.1, 95.4] n=4 | 50.0 [9.5, 90.5] n=2 |" in render_markdown(digits)


def test_runs_may_be_called_like_a_column(tmp_path):
    for name in ("n", "benchmark"):
        save_benchmark(tmp_path / name, "gqa", [1.0, 0.0])
    head, _, gqa = [line for line in render_markdown(build_report([*tmp_path.iterdir()])).splitlines() if "|" in line][
        :3
    ]
    assert head.count(" n ") == 2 + 1  # the documents, the run, and a difference
    assert gqa.count("50.0 [9.5, 90.5]") == 2


def test_csv_has_a_line_per_score(arms, digits, partial):
    rows = list(csv.DictReader(io.StringIO(render_csv(arms))))
    assert tuple(rows[0]) == CSV_COLUMNS
    assert len(rows) == 30 * 4 + 4
    (gqa,) = [row for row in rows if (row["name"], row["run"]) == ("GQA", "grid_manager")]
    assert (float(gqa["value"]), float(gqa["difference"]), gqa["reference"]) == (50, pytest.approx(20), "baseline")
    assert (gqa["table"], gqa["interval"], gqa["documents"]) == ("benchmark", "wilson", "10")
    figures = {row["run"]: row["value"] for row in rows if row["run"].startswith("paper")}
    assert figures == {
        f"paper: {arm}": value for arm, value in zip(ARMS, ("50.61", "51.67", "53.87", "55.21"), strict=True)
    }
    rows = list(csv.DictReader(io.StringIO(render_csv(digits))))
    assert [(row["name"], row["metric"], row["run"], float(row["value"])) for row in rows[2:]] == [
        ("digit_pages", "exact_match", "grid_manager", 75.0),
        ("digit_pages", "exact_match", "blind", 50.0),
    ]
    (failed,) = [row for row in csv.DictReader(io.StringIO(render_csv(partial))) if "failed" in row["remark"]]
    assert (failed["name"], failed["run"], failed["value"]) == ("MMVet", "part", "")


def test_json_holds_everything(arms, digits):
    saved = json.loads(render_json(arms))
    (gqa,) = [row for row in saved["benchmarks"] if row["name"] == "GQA"]
    assert gqa["scores"]["baseline"] == {
        "value": 30.0,
        "low": pytest.approx(10.78, abs=0.01),
        "high": pytest.approx(60.32, abs=0.01),
        "documents": 10,
        "interval": "wilson",
        "percent": True,
    }
    assert gqa["differences"]["grid_manager"] == {
        "value": pytest.approx(20),
        "low": 0,
        "high": 50,
        "percent": True,
    }
    assert (saved["arms"], len(saved["averages"])) == (list(ARMS), 10)
    saved = json.loads(render_json(digits))
    assert [row["metric"] for row in saved["rows"]] == ["anls", "exact_match"]
    assert saved["rows"][1]["scores"]["grid_manager"]["value"] == 75.0
    assert saved["runs"]["blind"]["digit_pages"]["image_noise"] is True
