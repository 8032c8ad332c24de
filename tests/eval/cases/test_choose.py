"""Which documents are cases, of which runs, and what is said about those that are not."""

import json
import shutil

import pytest

from llava.cli import main
from llava.errors import LlavaError
from llava.eval.cases.choose import choose_cases, name_runs
from tests.eval.cases.conftest import SCORES
from tests.eval.report.run_folders import save_benchmark, save_digit_pages


def chosen(runs, where=None, tasks=None, limit=50, least=0.5):
    """(task, how many fit, which are shown) of the runs, and the remarks."""
    cases, remarks = choose_cases(name_runs(runs), where, tasks, limit, least)
    return [(part.task, part.count, [choice.doc_id for choice in part.choices]) for part in cases], remarks


def test_documents_that_runs_answer_differently(runs):
    """Right are 1, 1, 0.75 and 1 of the first; 1 and 1 of the second; the last two documents are alike."""
    assert SCORES == {"grid": [1.0, 0.0, 0.75, 1.0, 0.0], "manager": [0.0, 1.0, 0.25, 1.0, 0.0]}
    assert chosen(runs) == ([("docvqa_val", 3, [0, 1, 2])], [])
    assert chosen(runs, least=0.8) == ([("docvqa_val", 2, [0, 1])], [])
    assert chosen(runs, limit=2) == ([("docvqa_val", 3, [0, 1])], [])


def test_documents_that_are_wanted(runs):
    assert chosen(runs, "grid wrong, manager right") == ([("docvqa_val", 1, [1])], [])
    assert chosen(runs, "grid better than manager") == ([("docvqa_val", 2, [0, 2])], [])
    assert chosen(runs[:1], "grid wrong") == ([("docvqa_val", 2, [1, 4])], [])


def test_a_judged_score_is_its_share_of_the_points(tmp_path):
    for name, points in {"one": [[6, 10], [9, 10]], "two": [[4, 10], [10, 10]]}.items():
        save_benchmark(tmp_path / name, "llava_in_the_wild", points)
    cases, _ = choose_cases(name_runs([tmp_path / "one", tmp_path / "two"]), None, None, 50, 0.5)
    (choice,) = cases[0].choices
    answers = [(answer.score, answer.share, answer.right) for answer in choice.answers]
    assert answers == [("6 of 10", 0.6, True), ("4 of 10", 0.4, False)]


def test_where_lower_is_better_the_lower_score_is_right(tmp_path):
    headline = {"metric": "exact_match", "value": 0.5, "factor": 1.0, "bounded": True, "higher_is_better": False}
    for name, errors in {"one": (1.0, 0.0), "two": (0.0, 1.0)}.items():
        save_digit_pages(tmp_path / name, *errors, headline=headline)
    assert chosen([tmp_path / "one", tmp_path / "two"], "one right")[0] == [("digit_pages", 1, [1])]


def test_other_documents_are_left_out_and_told(runs, save_run, tmp_path):
    other = save_run(tmp_path / "other", SCORES["manager"])
    file = other / "docvqa_val" / "samples.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    rows[0]["doc"]["question"] = "Another question?"
    rows[1]["target"] = ["C"]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    cases, remarks = chosen([runs[0], other])
    assert cases == [("docvqa_val", 1, [2])]
    assert remarks == ["docvqa_val: 2 documents are not the same in all runs, they are left out"]


def test_tasks_that_cannot_be_compared_are_told(runs, tmp_path):
    both = [shutil.copytree(run, tmp_path / run.name) for run in runs]
    save_digit_pages(both[0], 1.0, 0.0)
    assert chosen(both) == ([("docvqa_val", 3, [0, 1, 2])], [])
    cases, remarks = chosen(both, "grid wrong, manager right")
    assert (cases, remarks) == (
        [("docvqa_val", 1, [1])],
        ["digit_pages is left out: manager did not answer it"],
    )
    assert chosen(both, "grid right", tasks=["digit_pages"])[0] == [("digit_pages", 1, [0])]


def test_folders_of_one_name_are_told_apart_by_their_paths(tmp_path):
    folders = [tmp_path / path for path in ("a/x/grid", "b/x/grid", "b/manager", "grid")]
    for folder in folders:
        folder.mkdir(parents=True)
    name = f"{tmp_path.name}/grid"
    assert list(name_runs(folders)) == ["a/x/grid", "b/x/grid", "manager", name]
    with pytest.raises(LlavaError, match="manager: named twice"):
        name_runs([folders[2], folders[0], tmp_path / "b" / "x" / ".." / "manager"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--where", "grd right"], "--where: unknown run 'grd'; did you mean grid?"),
        (
            ["--where", "manager right, grid better than manager"],
            "none of 5 documents fits --where; nothing is written",
        ),
        (["--right", "0.1"], "none of 5 documents is answered right by one run and wrong by another"),
        (["--right", "1.5"], "--right must be above 0 and at most 1, found 1.5"),
        (["--limit", "0"], "--limit must be at least 1, found 0"),
        (["--task", "docvqa"], "unknown task 'docvqa'; did you mean docvqa_val?"),
        (["--by", "kid"], "no document has a field 'kid' (docvqa_val has questionId, question, question_types, "),
        (["--data", "elsewhere"], "elsewhere: not a dataset folder"),
    ],
)
def test_wrong_choices_get_one_line(save_run, tmp_path, capsys, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    scores = {"grid": [1.0, 0.2, 0.6, 1.0, 0.2], "manager": [0.2, 0.2, 0.2, 1.0, 0.2]}
    names = [str(save_run(tmp_path / name, values)) for name, values in scores.items()]
    assert main(["eval", "cases", *names, "--out", "page", *options]) == 2
    shown = capsys.readouterr()
    # The bar of the datasets library, where it shows one, begins with \r, at which splitlines would part.
    lines = [line for line in shown.err.removesuffix("\n").split("\n") if "Generating" not in line]
    assert (shown.out, len(lines)) == ("", 1)
    assert message in lines[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["grid", "manager"]


def test_one_run_needs_a_where_and_a_full_folder_is_kept(runs, tmp_path, capsys):
    assert main(["eval", "cases", str(runs[0]), "--out", str(tmp_path / "page")]) == 2
    assert "one run differs from none: name two runs, or say with --where what is wanted" in capsys.readouterr().err
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "kept").touch()
    assert main(["eval", "cases", *map(str, runs), "--out", str(tmp_path / "full")]) == 2
    assert "full exists and is not an empty folder; choose another --out" in capsys.readouterr().err
