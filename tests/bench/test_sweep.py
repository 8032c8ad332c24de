"""Sweeps: the layers that the shipped ones name at the paper's sizes and at others; one that is stopped goes on."""

import json
import signal
from pathlib import Path

import pytest

from llava.bench import fusion, sweep
from llava.bench.processes import Ended
from llava.bench.sweep import read_sweep
from llava.cli import main
from llava.errors import LlavaError
from llava.eval.workers import StopError
from llava.fusion.configs.manager import ManagerConfig
from tests.bench.made_up import made_up_result
from tests.paths import ROOT

SHIPPED = ROOT / "scripts/bench"


def layers_of(monkeypatch, figure: str, tower: int, language_model: int) -> dict[str, ManagerConfig]:
    """The managers of a shipped sweep's values at these sizes."""
    monkeypatch.setattr(sweep, "_depths", lambda data, parts: {"L": tower, "N": language_model})
    _, *rows = read_sweep(SHIPPED / f"{figure}.yaml", ["digit_pages"], "tiny").rows
    return {row.name: ManagerConfig(**row.section).resolved(tower, language_model) for row in rows}


@pytest.mark.parametrize(
    ("tower", "expected"),
    [
        (
            26,
            {
                "top_half": range(14, 27),
                "bottom_half": range(1, 14),
                "all": range(1, 27),
                "every_second": range(2, 27, 2),
            },
        ),
        (6, {"top_half": [4, 5, 6], "bottom_half": [1, 2, 3], "all": range(1, 7), "every_second": [2, 4, 6]}),
        (5, {"top_half": [3, 4, 5], "bottom_half": [1, 2], "all": range(1, 6), "every_second": [1, 3, 5]}),
    ],
)
def test_figure_10_names_layers_of_the_tower(monkeypatch, tower, expected):
    managers = layers_of(monkeypatch, "figure_10", tower, 24)
    assert {name: list(config.vision_layers) for name, config in managers.items()} == {
        name: list(layers) for name, layers in expected.items()
    }


def test_figure_11_is_the_papers_at_24_layers_and_in_proportion_at_others(monkeypatch):
    managers = layers_of(monkeypatch, "figure_11", 26, 24)
    counts = {name: len(config.injection_layers) for name, config in managers.items()}
    assert counts == {f"times_{times}": times for times in (1, 2, 3, 4, 6, 8, 12, 24)}
    assert managers["times_6"].injection_layers == (0, 4, 8, 12, 16, 20)
    smaller = layers_of(monkeypatch, "figure_11", 6, 6)
    assert {name: config.injection_layers for name, config in smaller.items()} == {
        "times_1": (0,),
        "times_2": (0, 3),
        "times_3": (0, 2, 4),
        "times_6": (0, 1, 2, 3, 4, 5),
    }
    assert read_sweep(SHIPPED / "figure_11.yaml", ["digit_pages"], "tiny").remarks == (
        "L = 6 layers of the tower, N = 6 of the language model",
        *("times_4 is times_3 here", "times_8 is times_6 here", "times_12 is times_6 here", "times_24 is times_6 here"),
    )


def test_figure_12_is_of_tiles():
    read = read_sweep(SHIPPED / "figure_12.yaml", ["digit_pages"], "tiny")
    assert {row.name: row.section for row in read.rows} == {
        "none": {}, "all": {"scope": "all"}, "main": {"scope": "main"}, "grid": {"scope": "grid"},
    }  # fmt: skip
    assert read.tiling == "anyres"


@pytest.fixture
def pretend(monkeypatch):
    """run_jobs that trains nothing; a job whose name is in the second list is stopped by a signal."""
    did, stops = [], []

    def run_jobs(bench, jobs, at_once):
        for job in [job for job in jobs if bench.result(job) is None]:
            if job.name in stops:
                raise StopError(signal.SIGTERM)
            did.append(job.name)
            bench.folder(job).mkdir(parents=True)
            (bench.folder(job) / "result.json").write_text(json.dumps(made_up_result(job)))
            yield Ended(job)

    monkeypatch.setattr(fusion, "run_jobs", run_jobs)
    return did, stops


def test_a_sweep_that_is_stopped_goes_on_where_it_was(tmp_path, pretend, capsys):
    did, stops = pretend
    words = ["bench", "fusion", str(SHIPPED / "figure_11.yaml"), "--out", str(tmp_path), "--seeds", "2"]
    stops.append("run-digit_pages-times_2-1")
    assert main(words) == 128 + signal.SIGTERM
    assert not (tmp_path / "results.json").exists()
    first, stops[:] = list(did), []
    assert "run-digit_pages-times_1-1" in first
    did.clear()
    capsys.readouterr()
    assert main(words) == 0
    values = ["none", "times_1", "times_2", "times_3", "times_6"]
    runs = [f"run-digit_pages-{name}-{seed}" for seed in (1, 2) for name in values]
    assert did == [name for name in runs if name not in first]
    printed = capsys.readouterr().out
    assert printed.index("times_24 is times_6 here") < printed.index("time  about") < printed.index("run-digit_pages")
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["settings"]["tiling"] == "square"
    assert results["sweep"]["values"] == values[1:]
    # Of 40 questions each row is right in as many as its name is long, and in 20 more.
    table = (tmp_path / "table.md").read_text()
    assert "| times_2 | 67.5 " in table
    assert "- How many managers there are (Figure 11)\n" in table
    assert "- times_4 is times_3 here\n" in table
    assert (tmp_path / "sweep.png").stat().st_size > 10_000
    did.clear()
    assert main(words) == 0
    assert did == []
    assert main(["bench", "table", str(tmp_path / "results.json"), "--picture", str(tmp_path / "again.png")]) == 0
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "sweep.png").read_bytes()


def write(folder: Path, **changes) -> Path:
    described = {"title": "T", "axis": "A", "arm": "manager", "tiling": "square", "values": {"a": {"interval": 1}}}
    file = folder / "own.yaml"
    file.write_text(json.dumps({key: value for key, value in (described | changes).items() if value is not None}))
    return file


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"axis": None}, "axis is missing"),
        ({"axes": "A"}, "unknown key 'axes'; did you mean axis?"),
        ({"arm": "managr"}, "arm: unknown arm 'managr'; did you mean manager?"),
        ({"tiling": "anyrez"}, "tiling: unknown tiling 'anyrez'; did you mean anyres?"),
        ({"values": {}}, "values must map names to keys of fusion, found {}"),
        ({"values": {"a b": {}}}, "values: a name has letters, digits and _ and is not none; found 'a b'"),
        ({"values": {"none": {}}}, "values: a name has letters, digits and _ and is not none; found 'none'"),
        ({"values": {"a": 3}}, "values.a must map keys of fusion to values, found 3"),
        (
            {"values": {"a": {"interval": "N ** 2"}}},
            "values.a.interval: 'N ** 2' cannot be computed from L and N ('N ** 2' is neither a whole number, L, N nor "
            "+, -, *, /, //, % of them)",
        ),
        ({"values": {"a": {"interval": "L +"}}}, "values.a.interval: 'L +' cannot be computed from L and N ("),
        ({"values": {"a": {"interval": "N / 0"}}}, "values.a.interval: 'N / 0' cannot be computed from L and N ("),
    ],
)
def test_mistakes_of_a_sweep_are_one_clear_line(tmp_path, changes, message):
    with pytest.raises(LlavaError) as error:
        read_sweep(write(tmp_path, **changes), ["digit_pages"], "tiny")
    assert str(error.value).startswith(f"{tmp_path / 'own.yaml'}: {message}")
    assert "\n" not in str(error.value)


def test_keys_that_there_are_not_and_methods_beside_a_sweep_are_refused(tmp_path, capsys):
    wrong = write(tmp_path, values={"a": {"intervall": 2}})
    assert main(["bench", "fusion", str(wrong), "--out", str(tmp_path / "out"), "--dry_run"]) == 2
    assert "fusion.intervall" in capsys.readouterr().err
    assert main(["bench", "fusion", str(write(tmp_path)), "--methods", "sci"]) == 2
    assert "own.yaml says which rows there are; leave --methods and --without" in capsys.readouterr().err
    with pytest.raises(LlavaError, match=r"the parts differ in layers of tower and language model \(text_pages 12 and"):
        read_sweep(SHIPPED / "figure_10.yaml", ["text_pages", "text_pages_small"], "smollm2")
