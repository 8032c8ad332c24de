"""`llava eval report` from the command line."""

import subprocess
import sys

import pytest
from PIL import Image

from llava.cli import main
from llava.eval.report import main as report
from llava.eval.report import tables
from llava.eval.report.comparison import build_report
from tests.eval.report.run_folders import save_all_benchmarks, save_benchmark, save_digit_pages


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return [str(save_all_benchmarks(folder / "one")), str(save_all_benchmarks(folder / "two", but=("gqa",)))]


def test_command_writes_all_forms(runs, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    files = {name: tmp_path / "out" / f"table.{name}" for name in ("markdown", "csv", "json")}
    options = [part for name, file in files.items() for part in (f"--{name}", str(file))]
    choices = ["--allow_missing", "--paper", "grid,manager", "--reference", runs[1]]
    assert report.main([*runs, *options, *choices]) == 0
    table = build_report([tmp_path.__class__(run) for run in runs], "two", ["grid", "manager"], allow_missing=True)
    assert "overall of 19 of 20 benchmarks" in table.title
    assert capsys.readouterr().out == tables.render_text(table, 100)
    assert files["markdown"].read_text() == tables.render_markdown(table)
    assert files["csv"].read_text() == tables.render_csv(table)
    assert files["json"].read_text() == tables.render_json(table)


def test_command_draws(runs, tmp_path, capsys):
    assert report.main([*runs, "--picture", str(tmp_path / "new" / "bars.png")]) == 0
    with Image.open(tmp_path / "new" / "bars.png") as image:
        assert image.width > 1500
        assert len(image.convert("RGB").getcolors(2**24)) > 20
    assert report.main([*runs, "--picture", str(tmp_path / "radar.svg"), "--style", "radar"]) == 0
    drawn = (tmp_path / "radar.svg").read_text()
    assert all(f"<!-- {name} -->" in drawn for name in ("VQAv2", "LLaVA-Wilder", "Text-rich"))


def test_matplotlib_is_only_imported_for_pictures(tmp_path):
    save_digit_pages(tmp_path / "run", 1.0)
    code = f"import sys; from llava.eval.report import main as report; report.main([{str(tmp_path / 'run')!r}])"
    code += "; print([name for name in ('matplotlib', 'torch', 'lmms_eval') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_table_is_printed_whatever_happens_to_the_picture(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "110")
    for run in ("one", "two"):
        save_digit_pages(tmp_path / run, 1.0, 0.0)
    runs = [str(tmp_path / run) for run in ("one", "two")]
    assert main(["eval", "report", *runs, "--picture", str(tmp_path / "bars.png")]) == 0
    table = capsys.readouterr().out
    assert "exact_match  50.0 [9.5, 90.5] n=2  50.0 [9.5, 90.5] n=2  +0.0 [+0.0, +0.0]" in table
    with Image.open(tmp_path / "bars.png") as image:
        assert len(image.convert("RGB").getcolors(2**24)) > 20
    (tmp_path / "file").write_text("")
    for options, reason in {
        ("--picture", str(tmp_path / "x.png"), "--style", "radar"): "a radar needs 3 scores that every run has",
        ("--picture", str(tmp_path / "file" / "x.png")): "x.png: cannot be written: ",
        ("--csv", str(tmp_path)): f"{tmp_path}: cannot be written: Is a directory",
    }.items():
        assert main(["eval", "report", *runs, *options]) == 2
        shown = capsys.readouterr()
        assert (shown.out, shown.err.count("\n")) == (table, 1)
        assert reason in shown.err
    monkeypatch.setattr(report, "find_spec", lambda name: None)
    assert main(["eval", "report", *runs, "--picture", str(tmp_path / "y.png")]) == 2
    assert capsys.readouterr() == (table, "error: --picture needs matplotlib: pip install matplotlib\n")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--picture", "table.pdf"], "--picture table.pdf: a picture is a file named .png or .svg"),
        (["--paper", "grids"], "the paper has no arm 'grids'"),
        (["--reference", "other"], "no run is called 'other', the runs are run"),
        (["nowhere"], "nowhere: no such run folder"),
    ],
)
def test_wrong_choices_get_one_line(tmp_path, capsys, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    save_benchmark(tmp_path / "run", "gqa", [1.0, 0.0])
    assert main(["eval", "report", "run", *options]) == 2
    shown = capsys.readouterr()
    assert message in shown.err
    assert (shown.out, shown.err.count("\n")) == ("", 1)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
