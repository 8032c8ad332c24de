"""The rows and their recipes, how a rate is chosen, and what a bench says before it starts."""

import json
from itertools import product

import pytest

from llava.bench.estimate import all_jobs, disk_needed, seconds_left
from llava.bench.jobs import LEFT_OUT, NEW_PARTS, Bench, Settings, Training
from llava.bench.rows import REFERENCE, all_rows, rows_named
from llava.cli import main
from llava.fusion.methods import METHODS
from llava.train.recipe.load import load_recipe
from llava.train.recipe.schema import recipe_keys

SETTINGS = {
    "parts": "tiny",
    "tower": "trained",
    "tiling": "anyres",
    "steps": 300,
    "grid_steps": 100,
    "timed_steps": 15,
    "rates": (1e-3, 4e-3),
    "samples": 1000,
    "held_out": 100,
    "documents": 50,
    "part_steps": None,
}


def bench(out, rows=None, seeds: int = 3, **changes) -> Bench:
    return Bench(out, Settings(**SETTINGS | changes), ("digit_pages",), tuple(rows_named(rows)), seeds, 2)


def test_every_method_is_a_row_and_names_are_unique():
    rows = all_rows()
    assert rows[0].name == REFERENCE
    assert [row.name for row in rows if row.name == row.method] == list(METHODS)
    assert len({row.name for row in rows}) == len(rows) > len(METHODS)
    assert all(row.about for row in rows)


def test_rows_differ_from_their_methods_by_keys_that_there_are():
    for row in all_rows():
        assert {f"fusion.{name}" for name in row.section} <= recipe_keys(row.method).keys(), row.name
    sections = [(row.method, json.dumps(row.section, sort_keys=True)) for row in all_rows()]
    assert len(set(sections)) == len(sections)


@pytest.mark.parametrize(("tower", "tiling"), list(product(("frozen", "trained"), ("square", "anyres"))))
def test_every_row_has_a_recipe(tmp_path, tower, tiling):
    of_folder = bench(tmp_path, tower=tower, tiling=tiling)
    resolved = of_folder.resolved()
    assert list(resolved) == [f"digit_pages {row.name}" for row in all_rows()]
    for row in all_rows():
        keys = resolved[f"digit_pages {row.name}"]
        assert keys["fusion.method"] == row.method
        assert {name: keys[f"fusion.{name}"] for name in row.section} == row.section
        assert keys["components.vision_tower.trained"] == (tower == "trained")
        assert keys["tiling.aspect_ratio"] == tiling
        assert not keys.keys() & set(LEFT_OUT)
    # What is not of the row itself is the same for all rows.
    shared = [
        {key: value for key, value in keys.items() if not key.startswith("fusion.") and key != "arm"}
        for keys in resolved.values()
    ]
    assert shared.count(shared[0]) == len(shared)


def test_the_rate_is_that_of_all_new_parts_and_of_nothing_else(tmp_path):
    job = Training("grid", "digit_pages", rows_named(["manager"])[1], rate=7e-3)
    recipe = load_recipe(**bench(tmp_path).recipe_arguments(job))
    rates = {name: getattr(recipe.components, name).lr for name in NEW_PARTS}
    assert rates == dict.fromkeys(("projector", "fusion", "newline"), 7e-3)
    assert recipe.components.language_model.lr is None
    assert recipe.optim.lr == 1e-3
    assert recipe.optim.max_steps == recipe.eval.steps == 100
    assert recipe.eval.data == str(tmp_path / "data/digit_pages/held_out.yaml")


def test_the_least_held_out_loss_chooses_the_rate(tmp_path):
    of_folder = bench(tmp_path, ["manager"])
    row = of_folder.rows[1]
    assert of_folder.chosen_rate("digit_pages", row) is None
    for job, loss in zip(of_folder.grid("digit_pages", row), (0.5, 0.3)):
        write_result(of_folder, job, held_out_loss=loss)
    assert of_folder.chosen_rate("digit_pages", row) == 4e-3
    assert [job.rate for job in of_folder.runs("digit_pages", row)] == [4e-3] * 3
    write_result(of_folder, job, held_out_loss=None)  # it diverged
    assert of_folder.chosen_rate("digit_pages", row) == 1e-3


def test_a_single_rate_needs_no_grid(tmp_path):
    of_folder = bench(tmp_path, ["manager"], rates=(2e-3,))
    assert of_folder.grid("digit_pages", of_folder.rows[1]) == []
    assert of_folder.chosen_rate("digit_pages", of_folder.rows[1]) == 2e-3


def write_result(of_folder: Bench, job: Training, **result) -> None:
    of_folder.folder(job).mkdir(parents=True, exist_ok=True)
    (of_folder.folder(job) / "result.json").write_text(json.dumps(result))


def test_time_and_disk_by_hand(tmp_path):
    of_folder = bench(tmp_path, ["manager"])
    jobs = all_jobs(of_folder)
    assert len(jobs) == 2 + 2 + 2 * 2 + 2 * 3
    assert seconds_left(of_folder, jobs) is None
    (measured,) = of_folder.measurements(of_folder.rows[0])
    write_result(
        of_folder,
        measured,
        seconds=20.0,
        training_seconds=12.0,
        step_seconds={"clock": 0.5, "processor": 0.5},
        seconds_per_answer=0.1,
    )
    # 8 s around each job's steps of 0.5 s; 100 questions of 0.1 s in a run; a measurement is alone, others are two.
    measure, grid, run = 8 + 15 * 0.5, 8 + 100 * 0.5, 8 + 300 * 0.5 + 100 * 0.1
    assert seconds_left(of_folder, jobs) == pytest.approx(measure + (4 * grid + 6 * run) / 2)
    write_result(of_folder, of_folder.grid("digit_pages", of_folder.rows[0])[0], seconds=2 * grid, held_out_loss=1.0)
    assert seconds_left(of_folder, jobs) == pytest.approx(measure + 2 * (3 * grid + 6 * run) / 2)
    assert 1150 * 5000 < disk_needed(of_folder) < 20e6


def test_a_dry_run_tells_and_writes_nothing(tmp_path, capsys):
    out = tmp_path / "fusion"
    assert main(["bench", "fusion", "--out", str(out), "--methods", "manager", "--dry_run"]) == 0
    printed = capsys.readouterr().out
    assert [line.split()[0] for line in printed.splitlines()[:2]] == ["none", "manager"]
    assert "jobs  16, 0 done: 2 make digit_pages and parts, 2 measure, 6 try rates for 100 steps, 6 train" in printed
    assert "time  not known before the first measurement" in printed
    assert f"in {out}, " in printed
    assert not out.exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--methods", "managr"], "--methods: unknown row 'managr'; did you mean manager?"),
        (["--data", "digits"], "--data: unknown data set 'digits'; did you mean digit_pages?"),
        (["--parts", "real"], "--parts of digit_pages: unknown parts 'real'; "),
        (["--seeds", "0"], "--seeds must be above 0; found 0"),
        (["--rates", "1e-3", "1e-3"], "--rates has 0.001 twice"),
        (["--timed_steps", "4"], "--timed_steps must be above 4; found 4"),
        (["--tower", "half"], "--tower must be one of frozen, trained; found 'half'"),
    ],
)
def test_mistakes_are_one_clear_line(tmp_path, capsys, words, message):
    assert main(["bench", "fusion", "--out", str(tmp_path), *words]) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"error: {message}")
    assert told.count("\n") == 1
