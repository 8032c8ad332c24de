"""`llava eval report --by FIELD`, of runs that were written without a model."""

import csv
import io
import json
import re

import pytest
from PIL import Image

from llava.cli import main
from llava.eval.report.kind_picture import draw_kinds
from llava.eval.report.kind_tables import COLUMNS, render_csv, render_json, render_markdown, render_text
from llava.eval.report.kinds import build_kind_report
from llava.eval.store import save_task_run
from tests.eval.benchmarks.twins import write_twin
from tests.eval.benchmarks.unjudged import DOCVQA
from tests.eval.report.run_folders import RUN, save_benchmark

TYPES = [["form"], ["form", "layout"], ["layout"], []]


def save_docvqa(run, scores, docs, **changes):
    """Saves DocVQA's documents with these fields; None in place of a document is what the first runs stored."""
    rows = [
        {"doc_id": number, "target": ["x"], "answer": "y", "scores": {} if score is None else {"anls": score}}
        | ({} if doc is None else {"doc": doc})
        for number, (score, doc) in enumerate(zip(scores, docs, strict=True))
    ]
    values = [score for score in scores if score is not None]
    value = sum(values) / len(values)
    block = {**RUN, "documents": len(rows), "metrics": ["anls"], "score": 100 * value, **changes}
    save_task_run(run, "docvqa_val", {"run": block, "results": {"docvqa_val": {"anls,none": value}}}, rows)
    return run


@pytest.fixture
def runs(tmp_path):
    docs = [{"question": f"q{number}", "question_types": types} for number, types in enumerate(TYPES)]
    return [
        save_docvqa(tmp_path / "grid", [1.0, 0.0, 0.5, 1.0], docs),
        save_docvqa(tmp_path / "grid_manager", [1.0, 1.0, 1.0, 0.0], docs),
    ]


def scores(report, run):
    (table,) = report.tables
    return {row.kind: (row.scores[run].documents, row.scores[run].value) for row in table.rows if run in row.scores}


def test_the_four_written_forms(runs):
    report = build_kind_report(runs, "question_types")
    assert scores(report, "grid") == {"all": (4, 62.5), "layout": (2, 25), "form": (2, 50), "(none)": (1, 100)}
    assert scores(report, "grid_manager") == {"all": (4, 75), "layout": (2, 100), "form": (2, 100), "(none)": (1, 0)}
    text = render_text(report, 100)
    assert text.startswith("DocVQA by question_types\n\n")
    assert max(map(len, text.splitlines())) <= 100
    (form,) = [line for line in text.splitlines() if line.startswith("form")]
    # One of two is right: Wilson's interval; the draws of two documents are none, one or both of them right.
    assert re.split(" {2,}", form)[-3:] == ["50.0 [9.5, 90.5]", "100.0 [34.2, 100.0]", "+50.0 [+0.0, +100.0]"]
    assert "| form | 2 | 50.0 [9.5, 90.5] | 100.0 [34.2, 100.0] | +50.0 [+0.0, +100.0] |" in render_markdown(report)
    lines = list(csv.DictReader(io.StringIO(render_csv(report))))
    assert (tuple(lines[0]), len(lines)) == (COLUMNS, 8)
    (line,) = [line for line in lines if (line["kind"], line["run"]) == ("layout", "grid_manager")]
    assert (line["value"], line["difference"], line["reference"]) == ("100.0", "75.0", "grid")
    saved = json.loads(render_json(report))
    assert saved["tables"][0]["rows"][2]["scores"]["grid"]["value"] == 50
    assert (saved["by"], saved["tables"][0]["field"]) == ("question_types", "question_types")


def test_pictures_name_every_kind_and_run(runs, tmp_path):
    report = build_kind_report(runs, "kind")
    (axes,) = draw_kinds(report, "bar").axes
    labels = [label.get_text() for label in axes.get_xticklabels()]
    assert labels == ["all\n(n=4)", "layout\n(n=2)", "form\n(n=2)", "(none)\n(n=1)"]
    assert [bar.get_height() for bar in axes.containers[1]] == [62.5, 25, 50, 100]
    figure = draw_kinds(report, "radar")
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["grid", "grid_manager"]
    (axes,) = figure.axes
    assert [list(line.get_ydata()) for line in axes.lines] == [[25, 50, 100, 25], [100, 100, 0, 100]]
    picture = tmp_path / "kinds.png"
    assert main(["eval", "report", *map(str, runs), "--by", "kind", "--picture", str(picture)]) == 0
    with Image.open(picture) as image:
        assert len(image.convert("RGB").getcolors(2**24)) > 20


def test_unscored_documents_do_not_count_and_are_told(tmp_path):
    docs = [{"question_types": types} for types in TYPES]
    run = save_docvqa(tmp_path / "run", [1.0, None, 0.0, 1.0], docs)
    report = build_kind_report([run], "question_types")
    assert scores(report, "run") == {
        "all": (3, pytest.approx(200 / 3)), "layout": (1, 0), "form": (1, 100), "(none)": (1, 100),
    }  # fmt: skip
    assert report.warnings == ["run: 1 of 4 documents of docvqa_val have no anls and do not count"]


def test_other_documents_are_not_paired(runs, tmp_path):
    docs = [{"question": f"q{number}", "question_types": types} for number, types in enumerate(TYPES[:3])]
    limited = save_docvqa(tmp_path / "limited", [1.0, 1.0, 1.0], docs, limit=3)
    report = build_kind_report([runs[0], limited], "question_types")
    (table,) = report.tables
    assert {row.kind: list(row.differences) for row in table.rows} == {
        "all": [], "layout": ["limited"], "form": ["limited"], "(none)": [],
    }  # fmt: skip
    assert report.warnings == ["limited and grid have other documents in docvqa_val: where they do, no difference"]


def test_fields_that_a_run_did_not_store_are_read_again(runs, tmp_path):
    """From where the documents lie, the older run's among others; of other documents nothing is taken."""
    folder = write_twin(DOCVQA, tmp_path / "data" / "docvqa_val")
    old = save_docvqa(tmp_path / "old", [1.0, 1.0, 0.0, 0.0], [None] * 4, data=str(folder))
    expected = {
        "all": (4, 50),
        **{"figure/diagram": (1, 100), "layout": (1, 0), "table/list": (1, 0), "form": (1, 0), "handwritten": (1, 100)},
    }
    assert scores(build_kind_report([old], "question_types"), "old") == expected
    moved = save_docvqa(tmp_path / "moved", [1.0, 1.0, 0.0, 0.0], [None] * 4, data="elsewhere")
    assert scores(build_kind_report([moved], "kind", data=tmp_path / "data"), "moved") == expected
    assert main(["eval", "report", str(moved), "--by", "question_types"]) == 2
    report = build_kind_report([*runs, moved], "question_types")
    assert list(report.runs) == ["grid", "grid_manager", "moved"]
    assert report.warnings[0] == (
        "moved: task docvqa_val: its documents are not in elsewhere any more; --data ROOT names where they lie"
    )
    assert all("moved" not in row.scores for table in report.tables for row in table.rows)


def test_other_documents_in_that_place_are_told(tmp_path, capsys):
    folder = write_twin(DOCVQA, tmp_path / "data")
    docs = [{"question": "another question"}] * 4
    other = save_docvqa(tmp_path / "other", [1.0] * 4, docs, data=str(folder))
    assert main(["eval", "report", str(other), "--by", "question_types"]) == 2
    assert (
        "task docvqa_val: document 0 is another than the run was asked: 'question' is "
        "'What is to be seen? (document 0)', the run stored 'another question'" in capsys.readouterr().err
    )


def test_several_tasks_and_only_some(runs):
    """A task without the field is left out, unless it is the only one."""
    save_benchmark(runs[0], "gqa", [1.0, 0.0])
    assert [table.task for table in build_kind_report(runs, "question_types").tables] == ["docvqa_val"]
    assert [table.task for table in build_kind_report(runs, "question").tables] == ["gqa", "docvqa_val"]
    tables = build_kind_report(runs, "question", tasks=["gqa"]).tables
    assert [(table.task, [row.kind for row in table.rows]) for table in tables] == [("gqa", ["all", "gqa 0", "gqa 1"])]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--by", "question_typ"], "did you mean question_types? (docvqa_val has question, question_types)"),
        (["--by", "kind", "--tasks", "docvqa"], "unknown task 'docvqa'; did you mean docvqa_val?"),
        (["--by", "kind", "--reference", "other"], "no run is called 'other', the runs are grid, grid_manager"),
        (["--by", "kind", "--paper", "grid"], "--paper and --allow_missing are about averages"),
        (["--tasks", "gqa"], "--tasks and --data are for a report by kind of question; name a field with --by"),
    ],
)
def test_wrong_choices_get_one_line(runs, capsys, options, message):
    assert main(["eval", "report", *map(str, runs), *options]) == 2
    shown = capsys.readouterr()
    assert message in shown.err
    assert (shown.out, shown.err.count("\n")) == ("", 1)
