"""The numbers of the results table, checked against values computed by hand."""

import json

import pytest

from llava.errors import LlavaError
from llava.eval import report
from llava.eval.store import discard_task_run, load_run, save_task_run

RUN = {
    "model": "models/tiny",
    "weights": "0123456789ab",
    "image_noise": False,
    "device": "cpu",
    "dtype": "float32",
    "date": "2026-01-02T03:04:05+00:00",
    "task_version": 1.0,
    "versions": {"lmms-eval": "0.7.3", "torch": "2.13.0"},
    "metrics": ["anls", "exact_match", "exact_match_place"],
}


def save(folder, rows, task="digit_pages", **changes):
    """Saves a finished task whose harness means are those of `rows`, unless `means` says otherwise."""
    means = changes.pop("means", None)
    if means is None:
        means = {}
        for metric in RUN["metrics"]:
            values = [row["scores"][metric] for row in rows if metric in row["scores"]]
            if values:
                means[f"{metric},none"] = sum(values) / len(values)
    run = {**RUN, "documents": len(rows), **changes}
    return save_task_run(folder, task, {"run": run, "results": {task: means}}, rows)


def rows_of(*exact, anls=None):
    anls = anls or exact
    return [
        {"doc_id": index, "answer": "7", "scores": {"anls": soft, "exact_match": hard}}
        for index, (hard, soft) in enumerate(zip(exact, anls, strict=True))
    ]


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        # z = 1.959964, centre (p + z^2/2n) / (1 + z^2/n), half z sqrt(p(1-p)/n + z^2/4n^2) / (1 + z^2/n)
        (7, 10, 0.396778, 0.892209),
        (0, 20, 0.0, 0.161125),  # z^2 / (n + z^2)
        (20, 20, 0.838875, 1.0),
        (1, 1, 0.206549, 1.0),
    ],
)
def test_wilson(successes, trials, low, high):
    assert report.wilson(successes, trials) == pytest.approx((low, high), abs=1e-6)


def test_score_of_zeros_and_ones_is_wilson():
    score = report.score([1.0] * 7 + [0.0] * 3)
    assert (score.value, score.documents, score.interval) == (pytest.approx(70.0), 10, "wilson")
    assert str(score) == "70.0 [39.7, 89.2] n=10"


def test_score_of_fractions_is_a_seeded_bootstrap_around_the_mean():
    values = [0.0, 0.5, 1.0, 0.75] * 50
    score = report.score(values)
    assert (score.value, score.interval) == (pytest.approx(56.25), "bootstrap")
    # The standard deviation of the values is 0.36976, of their mean 0.026146: the normal interval is 56.25 -+ 5.12.
    assert score.low == pytest.approx(56.25 - 5.12, abs=0.8)
    assert score.high == pytest.approx(56.25 + 5.12, abs=0.8)
    assert report.score(values) == score


def test_scores_outside_the_unit_interval_are_refused():
    with pytest.raises(LlavaError, match=r"\[0, 1\], found 0.5 to 70"):
        report.score([0.5, 70.0])


def test_report_has_a_column_per_run_and_a_row_per_metric(tmp_path):
    sighted = rows_of(1.0, 1.0, 1.0, 0.0, anls=(1.0, 1.0, 1.0, 0.5))
    sighted[0]["scores"]["exact_match_place"] = 1.0
    save(tmp_path / "grid_manager", sighted)
    save(tmp_path / "blind", rows_of(0.0, 1.0), image_noise=True)
    table = report.build_report([tmp_path / "grid_manager", tmp_path / "blind"])

    assert list(table.runs) == ["grid_manager", "blind"]
    assert list(table.rows) == [
        ("digit_pages", "anls"),
        ("digit_pages", "exact_match"),
        ("digit_pages", "exact_match_place"),
    ]
    exact = table.rows["digit_pages", "exact_match"]
    assert (exact["grid_manager"].value, exact["grid_manager"].documents) == (75.0, 4)
    assert (exact["blind"].value, exact["blind"].documents) == (50.0, 2)
    assert table.rows["digit_pages", "anls"]["grid_manager"].value == pytest.approx(87.5)
    assert table.rows["digit_pages", "exact_match_place"]["grid_manager"].documents == 1

    text = report.render_text(table)
    head, rule, *_ = text.splitlines()
    assert head.split() == ["task", "metric", "grid_manager", "blind"]
    assert set(rule) == {"-", " "}
    assert "digit_pages  exact_match_place  100.0 [20.7, 100.0] n=1  -" in text
    assert "blind, digit_pages v1.0: models/tiny (weights 0123456789ab), images replaced by noise" in text
    assert "lmms-eval 0.7.3, torch 2.13.0" in text

    markdown = report.render_markdown(table)
    assert "| digit_pages | exact_match | 75.0 [30.1, 95.4] n=4 | 50.0 [9.5, 90.5] n=2 |" in markdown
    saved = json.loads(report.render_json(table))
    assert saved["rows"][1]["scores"]["grid_manager"] == {
        "value": 75.0,
        "low": pytest.approx(30.06, abs=0.01),
        "high": pytest.approx(95.44, abs=0.01),
        "documents": 4,
        "interval": "wilson",
    }
    assert saved["runs"]["blind"]["digit_pages"]["image_noise"] is True


def test_command_writes_all_three_forms(tmp_path, capsys):
    save(tmp_path / "run", rows_of(1.0, 0.0))
    files = tmp_path / "out" / "table.md", tmp_path / "out" / "table.json"
    code = report.main([str(tmp_path / "run"), "--markdown", str(files[0]), "--json", str(files[1])])
    table = report.build_report([tmp_path / "run"])
    assert code == 0
    assert capsys.readouterr().out == report.render_text(table)
    assert files[0].read_text() == report.render_markdown(table)
    assert files[1].read_text() == report.render_json(table)


def test_two_runs_of_one_name_are_refused(tmp_path):
    save(tmp_path / "a" / "run", rows_of(1.0))
    save(tmp_path / "b" / "run", rows_of(1.0))
    with pytest.raises(LlavaError, match="another run is already called 'run'"):
        report.build_report([tmp_path / "a" / "run", tmp_path / "b" / "run"])


def test_missing_and_empty_runs_are_named(tmp_path):
    with pytest.raises(LlavaError, match="nowhere: no such run folder"):
        load_run(tmp_path / "nowhere")
    with pytest.raises(LlavaError, match="holds no evaluation results"):
        load_run(tmp_path)


def test_results_that_disagree_with_their_samples_are_refused(tmp_path):
    save(tmp_path / "mean", rows_of(1.0, 0.0), means={"anls,none": 0.5, "exact_match,none": 0.75})
    with pytest.raises(LlavaError, match=r"exact_match is 0.5 over samples.jsonl but 0.75 in results.json"):
        load_run(tmp_path / "mean")
    save(tmp_path / "short", rows_of(1.0, 0.0), documents=3)
    with pytest.raises(LlavaError, match=r"2 rows in samples.jsonl but 3 documents in results.json"):
        load_run(tmp_path / "short")
    folder = save(tmp_path / "cut", rows_of(1.0, 0.0))
    (folder / "results.json").write_text((folder / "results.json").read_text()[:-20])
    with pytest.raises(LlavaError, match="damaged results"):
        load_run(tmp_path / "cut")


def test_saving_replaces_and_discarding_removes(tmp_path):
    save(tmp_path, rows_of(1.0, 0.0))
    save(tmp_path, rows_of(1.0))
    assert [run.scores["exact_match"] for run in load_run(tmp_path)] == [[1.0]]
    assert [path.name for path in tmp_path.iterdir()] == ["digit_pages"]
    discard_task_run(tmp_path, "digit_pages")
    assert list(tmp_path.iterdir()) == []
