"""A bench of two rows and two seeds, killed in the middle and started again; its table computed anew from its JSON."""

import json
import os
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from llava.bench.data_sets import parts_of
from llava.bench.jobs import Bench, Settings
from llava.bench.results import collect, read_results, table_lines
from llava.bench.rows import rows_named
from llava.bench.table import render_markdown
from llava.cli import main
from llava.errors import LlavaError
from tests.paths import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SMOKE = {
    "--methods": ["manager"],
    "--seeds": ["2"],
    "--tiling": ["square"],
    "--steps": ["2"],
    "--grid_steps": ["1"],
    "--timed_steps": ["5"],
    "--rates": ["1e-3", "4e-3"],
    "--captions": ["32"],
    "--samples": ["96"],
    "--held_out": ["8"],
    "--documents": ["6"],
    "--part_steps": ["2"],
}
JOBS = 2 + 2 + 4 + 4


def words(out: Path, **changes: str) -> list[str]:
    options = SMOKE | {f"--{name}": value.split() for name, value in changes.items()} | {"--out": [str(out)]}
    return ["bench", "fusion", *(word for name, values in options.items() for word in (name, *values))]


@pytest.fixture(scope="module")
def bench(forked_python, tmp_path_factory) -> tuple[Path, dict[str, bytes]]:
    """The folder of a bench that was killed once, and the results that were there then."""
    out = tmp_path_factory.mktemp("bench") / "fusion"
    environment = os.environ | {"PATH": forked_python.path}
    command = ["llava", *words(out)]
    killed = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
    try:
        while not list(out.glob("jobs/run-*/result.json")):
            assert killed.poll() is None
            time.sleep(0.02)
    finally:
        killed.kill()
        killed.wait()
    while forked_python.processes():  # its jobs end with it, or this would wait for ever
        time.sleep(0.02)
    done = {str(file.parent): file.read_bytes() for file in out.glob("jobs/*/result.json")}
    assert 2 + 2 + 4 < len(done) < JOBS
    finished = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    (out / "printed").write_text(finished.stdout)
    return out, done


def test_what_was_done_is_not_done_again(bench):
    out, done = bench
    results = {str(file.parent): file.read_bytes() for file in out.glob("jobs/*/result.json")}
    assert len(results) == JOBS
    assert done.items() <= results.items()
    assert list(out.glob("jobs/*/model*")) == []


def test_a_third_start_does_nothing(bench, capsys):
    out, _ = bench
    before = {file: file.stat().st_mtime_ns for file in out.glob("jobs/*/*")}
    assert main(words(out)) == 0
    assert {file: file.stat().st_mtime_ns for file in out.glob("jobs/*/*")} == before
    assert f"jobs  {JOBS}, {JOBS} done" in capsys.readouterr().out


def test_the_tables_arithmetic_by_hand(bench):
    """Every number of the table that is a mean, from the right and wrong answers of results.json."""
    out, _ = bench
    results = json.loads((out / "results.json").read_text())
    pages = results["data"]["digit_pages"]
    assert [asked["id"] for asked in pages["questions"]][:2] == ["0-place", "0-read"]
    assert len(pages["questions"]) == 12
    lines = {line.row: line for line in table_lines(results)}
    assert list(lines) == list(pages["rows"]) == ["none", "manager"]
    for name, row in pages["rows"].items():
        right = [row["seeds"][seed]["right"] for seed in ("1", "2")]
        for seed, of_seed in enumerate(right):
            answered = sum(of_seed) / len(of_seed) * 100
            assert lines[name].score.by_seed[seed] == pytest.approx(answered)
        assert lines[name].score.score.value == pytest.approx(100 * sum(map(sum, right)) / 24)
        places = [value for of_seed in right for value in of_seed[::2]]
        assert lines[name].score.by_kind["place"] == pytest.approx(100 * sum(places) / 12)
        held_out = [row["seeds"][seed]["held_out_loss"] for seed in ("1", "2")]
        assert lines[name].loss.mean == pytest.approx(sum(held_out) / 2)
        losses = dict(map(tuple, row["grid"]))
        assert set(losses) == {1e-3, 4e-3}
        assert row["rate"] == min(losses, key=losses.get)
        assert [run["rate"] for run in row["seeds"].values()] == [row["rate"]] * 2
    none, manager = (
        [run["held_out_loss"] for run in pages["rows"][name]["seeds"].values()] for name in ("none", "manager")
    )
    first, second = (one - other for one, other in zip(manager, none))
    half = 12.706 * abs(first - second) / 2  # Student's t with one degree of freedom
    difference = lines["manager"].loss.difference
    assert difference.value == pytest.approx((first + second) / 2)
    assert (difference.low, difference.high) == pytest.approx((difference.value - half, difference.value + half))
    assert lines["none"].loss.difference is None
    # Projector (96 to 96 twice) and newline; 6 managers of 3 maps and their 3 layer embeddings.
    assert pages["rows"]["none"]["parameters"]["new"] == 2 * (96 * 96 + 96) + 96
    assert pages["rows"]["manager"]["parameters"]["new"] == 2 * (96 * 96 + 96) + 96 + (6 + 1) * 3 * 96
    markdown = (out / "table.md").read_text()
    assert markdown == render_markdown(results)
    assert f"| manager | {lines['manager'].score.score} |" in markdown
    assert (out / "score_and_cost.png").stat().st_size > 10_000
    sizes = json.loads((out / "jobs/measure-digit_pages-none/result.json").read_text())["sizes"]
    of_parts = parts_of("digit_pages", "tiny")  # what a sweep's layers are computed from
    assert (sizes["vision_layers"], sizes["text_layers"]) == (of_parts.vision_layers, of_parts.text_layers)


def test_rows_of_a_seed_trained_on_the_same_samples_in_the_same_steps(bench):
    out, _ = bench
    rows = read_results(out / "results.json")["data"]["digit_pages"]["rows"]
    orders = {seed: {row["seeds"][seed]["order"] for row in rows.values()} for seed in ("1", "2")}
    assert all(len(of_seed) == 1 for of_seed in orders.values())
    assert orders["1"] != orders["2"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": "5"}, "was started with steps 2, this is 5; name another --out"),
        ({"rates": "1e-3"}, "was started with rates [0.001, 0.004], this is [0.001]; name another --out"),
        ({"tower": "frozen"}, "was started with tower trained, this is frozen; name another --out"),
    ],
)
def test_a_changed_setting_is_refused(bench, capsys, changes, message):
    out, _ = bench
    assert main(words(out, **changes)) == 2
    assert capsys.readouterr().err == f"error: {out} {message}\n"


def test_a_changed_recipe_is_refused(bench, capsys):
    out, _ = bench
    original = (out / "bench.json").read_text()
    started = json.loads(original)
    started["rows"]["digit_pages manager"]["fusion.scope"] = "main"
    (out / "bench.json").write_text(json.dumps(started))
    try:
        assert main([*words(out), "--dry_run"]) == 2
    finally:
        (out / "bench.json").write_text(original)
    told = f"error: {out} was started with digit_pages manager: fusion.scope main, this is all; name another --out\n"
    assert capsys.readouterr().err == told


def test_more_seeds_and_rows_are_welcome(bench, capsys):
    out, _ = bench
    more = words(out, seeds="3", methods="manager deepstack_qwen3")
    assert main([*more, "--dry_run"]) == 0
    printed = capsys.readouterr().out
    assert f"jobs  {2 + 3 + 6 + 9}, {JOBS} done" in printed
    assert "time  about" in printed


def test_another_order_is_refused(bench, monkeypatch):
    out, _ = bench
    settings = json.loads((out / "bench.json").read_text())["settings"]
    of_folder = Bench(out, Settings(**settings), ("digit_pages",), tuple(rows_named(["manager"])), seeds=2, at_once=1)
    assert collect(of_folder, {}) == read_results(out / "results.json")
    result = Bench.result

    def of_another_order(self, job):
        return result(self, job) | ({"order": "another"} if job.name == "run-digit_pages-manager-2" else {})

    monkeypatch.setattr(Bench, "result", of_another_order)
    with pytest.raises(LlavaError, match="digit_pages, seed 2: none and manager were not trained on the same samples"):
        collect(of_folder, {})


def test_the_table_is_computed_from_the_file_alone(bench, tmp_path, capsys):
    out, _ = bench
    file = tmp_path / "results.json"
    results = read_results(out / "results.json")
    runs = results["data"]["digit_pages"]["rows"]["manager"]["seeds"]
    for run in runs.values():
        run["right"] = np.ones(12, int).tolist()
    file.write_text(json.dumps(results))
    assert main(["bench", "table", str(file), "--markdown", str(tmp_path / "table.md")]) == 0
    assert "| manager | 100.0 [100.0, 100.0] |" in (tmp_path / "table.md").read_text()
    file.write_text('{"format": "another"}')
    assert main(["bench", "table", str(file)]) == 2
    assert "expected the format 'llava bench fusion 2', found 'another'" in capsys.readouterr().err
