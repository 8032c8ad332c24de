"""The rows and their recipes, how a rate is chosen, and what a bench says before it starts."""

import json
import re
from dataclasses import replace
from itertools import product

import pytest

from llava.bench.data_sets import DATA_SETS, parts_of
from llava.bench.entry import Pace
from llava.bench.estimate import all_jobs, disk_needed, seconds_left, source_of_times
from llava.bench.jobs import LEFT_OUT, NEW_PARTS, Bench, Settings, Training
from llava.bench.rows import ARMS, REFERENCE, all_rows, rows_named
from llava.cli import main
from llava.errors import LlavaError
from llava.fusion.methods import METHODS, fusion_config
from llava.train.mllm.rules import faults_of
from llava.train.recipe.dotted import read_yaml
from llava.train.recipe.load import load_recipe
from llava.train.recipe.schema import recipe_keys

METHODS_OF_ARMS = {path.stem: read_yaml(str(path))["fusion"]["method"] for path in ARMS.glob("*.yaml")}
SETTINGS = {
    "parts": "tiny",
    "tower": "trained",
    "tiling": "anyres",
    "steps": 300,
    "grid_steps": 100,
    "timed_steps": 15,
    "rates": (1e-3, 4e-3),
    "captions": 200,
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
    assert [row.name for row in rows if row.name in METHODS] == list(METHODS)
    assert len({row.name for row in rows}) == len(rows) > len(METHODS)
    assert all(row.about for row in rows)


# Methods without a row METHOD_zero (control c5), and why.
WITHOUT_ZERO = {
    "none": "is the baseline",
    **dict.fromkeys(("manager", "mmfuser", "cross_attention", "cli_reconstruction"), "begins as the baseline anyway"),
    "sti": "has no weights of its own, and more tokens than the baseline",
}


def test_every_method_with_another_start_than_the_baselines_is_a_row_at_zero_too():
    zero = {row.name: row for row in all_rows() if row.name.endswith("_zero")}
    assert list(zero) == [f"{name}_zero" for name in METHODS if name not in WITHOUT_ZERO]
    assert set(WITHOUT_ZERO) < METHODS.keys()
    for name, row in zero.items():
        assert (row.arm, row.section) == (name.removesuffix("_zero"), {"initialisation": "zero"})


def test_rows_differ_from_their_methods_by_keys_that_there_are():
    for row in all_rows():
        method = METHODS_OF_ARMS[row.arm]
        assert {f"fusion.{name}" for name in row.section} <= recipe_keys(method).keys(), row.name
    sections = [(row.arm, json.dumps(row.section, sort_keys=True), row.like) for row in all_rows()]
    assert len(set(sections)) == len(sections)


@pytest.mark.parametrize(("tower", "tiling"), list(product(("frozen", "trained"), ("square", "anyres"))))
def test_every_row_has_a_recipe(tmp_path, tower, tiling):
    of_folder = bench(tmp_path, tower=tower, tiling=tiling)
    resolved = of_folder.resolved()
    assert list(resolved) == [f"digit_pages {row.name}" for row in all_rows()]
    for row in all_rows():
        keys = resolved[f"digit_pages {row.name}"]
        assert keys["fusion.method"] == METHODS_OF_ARMS[row.arm]
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


LAYERS = {  # of the tower, as far as it is used, and of the language model
    ("digit_pages", "tiny"): (6, 6),
    ("text_pages", "smollm2"): (12, 30),
    ("text_pages", "smollm2_dinov2"): (12, 30),
    ("text_pages_small", "smollm2"): (4, 30),
}


def test_the_layers_of_all_parts_are_known():
    parts = {(data, name): one for data, entry in DATA_SETS.items() for name, one in entry.parts.items()}
    assert {key: (one.vision_layers, one.text_layers) for key, one in parts.items()} == LAYERS


@pytest.mark.parametrize(("data", "parts"), LAYERS)
def test_every_row_has_its_layers_in_the_parts_of_every_data_set(tmp_path, data, parts):
    """As a model that is loaded resolves them."""
    layers = LAYERS[data, parts]
    of_folder = bench(tmp_path, parts=parts)
    for row in of_folder.rows:
        keys = of_folder.recipe_arguments(Training("measure", data, replace(row, like=None)))["keys"]
        section = {key.removeprefix("fusion."): keys[key] for key in keys if key.startswith("fusion.")}
        fusion = fusion_config(read_yaml(str(ARMS / f"{row.arm}.yaml"))["fusion"] | section)
        assert fusion.faults() == []
        resolved = fusion.resolved(*layers)
        assert resolved.resolved(*layers) == resolved
        assert max(resolved.tower_layers(layers[0])) <= layers[0]


@pytest.mark.parametrize(("tiling", "left_out"), [("square", ["deepstack", "deepstack_zero"]), ("anyres", ["sti"])])
def test_rows_that_do_not_fit_the_tiling_are_refused_but_in_stage_1(tmp_path, tiling, left_out):
    """A measurement is refused with the recipe's fault, and with it the row; stage 1 is square for all."""
    of_folder, faults = bench(tmp_path, tiling=tiling), {}
    for row in of_folder.rows:
        if not row.like:
            arguments = of_folder.recipe_arguments(Training("measure", "digit_pages", row))
            faults[row.name] = faults_of(load_recipe(**arguments))
        if row.name in left_out:
            (why,) = faults[row.name]
            assert f"fusion.method {row.arm} " in why
            assert f" tiling.aspect_ratio {tiling} " in why
            first = of_folder.stage_1_arguments(Training("run", "digit_pages", row, seed=1, rate=1e-3))
            assert faults_of(load_recipe(**first)) == []
    assert [name for name in faults if faults[name]] == left_out


def test_in_stage_1_the_new_parts_learn_alone_and_the_run_starts_from_there(tmp_path):
    of_folder = bench(tmp_path, ["manager_last", "deepstack_zero"])
    for row in of_folder.rows:
        job = Training("run", "digit_pages", replace(row, like=None), 2, 1e-3)
        first, then = load_recipe(**of_folder.stage_1_arguments(job)), load_recipe(**of_folder.recipe_arguments(job))
        assert (first.model.start_from, then.model.start_from) == (None, first.run.output_dir)
        assert first.fusion == then.fusion
        assert first.tiling.aspect_ratio == "square"
        trained = [name for name, part in vars(first.components).items() if part.trained]
        assert trained == ["projector", "fusion"]
        assert first.components.projector.lr == first.components.fusion.lr == 4e-3
        assert then.components.language_model.trained
        assert (first.optim.max_steps, then.optim.max_steps) == (None, 300)
        assert first.data.mixture != then.data.mixture
        assert first.run.seed == then.run.seed == 2
    assert "stage_1" not in written_task(of_folder, Training("measure", "digit_pages", of_folder.rows[0]))


def written_task(of_folder: Bench, job: Training) -> dict:
    of_folder.write_task(job)
    return json.loads((of_folder.folder(job) / "task.json").read_text())


def test_every_arm_of_a_method_is_a_row():
    """Those of `none` but itself are of widths for models of one size."""
    arms = [arm for arm, method in METHODS_OF_ARMS.items() if method != "none"]
    assert set(arms) < {row.name for row in all_rows()}
    assert len(arms) >= len(METHODS) - 1


def test_names_may_be_patterns(tmp_path):
    names = [row.name for row in rows_named(["deepstack*"], without=["*_qwen3*"])]
    assert names == ["none", "deepstack", "deepstack_zero"]
    every = [row.name for row in all_rows()]
    assert [row.name for row in rows_named(None, without=["manager_*"])] == [
        name for name in every if not name.startswith("manager_")
    ]


def test_a_row_that_is_like_another_has_its_number_of_parameters(tmp_path):
    """1,930 more than none: 10 channels more between the projector's layers, each of 96 + 96 weights and a bias."""
    of_folder = bench(tmp_path, ["none_like_manager"])
    none, manager, like = of_folder.rows  # what a row is like comes with it
    job = Training("run", "digit_pages", like, seed=1, rate=1e-3)
    assert "fusion.projector_width" not in of_folder.recipe_arguments(job)["keys"]
    sizes = {"vision_layers": 6, "vision_width": 96, "text_layers": 6, "text_width": 96, "crop_tokens": 16}
    for row, total in ((none, 1_062_624), (manager, 1_064_554)):
        measured = Training("measure", "digit_pages", row)
        write_result(of_folder, measured, parameters={"total": total}, sizes=sizes)
    assert of_folder.recipe_arguments(job)["keys"]["fusion.projector_width"] == 106
    assert load_recipe(**of_folder.recipe_arguments(job)).fusion.projector_width == 106
    write_result(of_folder, measured, parameters={"total": 1_062_624}, sizes=sizes)
    with pytest.raises(LlavaError, match="manager adds no parameters"):
        of_folder.recipe_arguments(job)


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


def test_time_and_disk_by_hand(tmp_path, monkeypatch):
    of_folder = bench(tmp_path, ["manager"])
    jobs = all_jobs(of_folder)
    assert len(jobs) == 2 + 2 + 2 * 2 + 2 * 3
    parts = parts_of("digit_pages", "tiny")
    recorded = replace(
        parts.recorded, where="elsewhere", making=240, pace=Pace(around=8, step=0.5, answer=0.1, batch_size=20)
    )
    monkeypatch.setitem(DATA_SETS["digit_pages"].parts, "tiny", replace(parts, recorded=recorded))
    # 8 s around each job's steps of 0.5 s, 10 of them of 200 captions; 100 questions of 0.1 s in a run. A measurement
    # is alone and without captions, others are two.
    measure, grid, run = 8 + 15 * 0.5, 8 + 110 * 0.5, 8 + 310 * 0.5 + 100 * 0.1
    assert source_of_times(of_folder) == "elsewhere"
    assert seconds_left(of_folder, jobs) == pytest.approx(240 + 2 * measure + (4 * grid + 6 * run) / 2)
    fewer_steps = bench(tmp_path, ["manager"], part_steps=parts.steps // 2)
    assert seconds_left(fewer_steps, jobs) == pytest.approx(120 + 2 * measure + (4 * grid + 6 * run) / 2)
    for job in of_folder.makings():
        write_result(of_folder, job, seconds=1.0)
    assert seconds_left(of_folder, jobs) == pytest.approx(2 * measure + (4 * grid + 6 * run) / 2)
    monkeypatch.setitem(DATA_SETS["digit_pages"].parts, "tiny", replace(parts, recorded=None))
    assert seconds_left(of_folder, jobs) is None
    assert source_of_times(of_folder) is None
    (measured,) = of_folder.measurements(of_folder.rows[0])
    write_result(
        of_folder,
        measured,
        seconds=20.0,
        training_seconds=12.0,
        step_seconds={"clock": 0.5, "processor": 0.5},
        seconds_per_answer=0.1,
        batch_size=20,
    )
    assert seconds_left(of_folder, jobs) == pytest.approx(measure + (4 * grid + 6 * run) / 2)
    write_result(of_folder, of_folder.grid("digit_pages", of_folder.rows[0])[0], seconds=2 * grid, held_out_loss=1.0)
    assert seconds_left(of_folder, jobs) == pytest.approx(measure + 2 * (3 * grid + 6 * run) / 2)
    assert 1350 * 5000 + 3 * 3e6 < disk_needed(of_folder) < 25e6


def test_a_dry_run_tells_and_writes_nothing(tmp_path, capsys):
    out = tmp_path / "fusion"
    assert main(["bench", "fusion", "--out", str(out), "--methods", "manager", "--dry_run"]) == 0
    printed = capsys.readouterr().out
    assert [line.split()[0] for line in printed.splitlines()[:2]] == ["none", "manager"]
    assert "jobs  14, 0 done: 2 make digit_pages and parts, 2 measure, 4 try rates for 40 steps, 6 train" in printed
    assert re.search(
        r"time  about \S+ minutes from here, as fast as two cores of an Intel Xeon and every row as none,", printed
    )
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
