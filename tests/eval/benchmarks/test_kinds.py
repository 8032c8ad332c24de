"""Scores by kind of question of runs that the real harness left, against a count by hand."""

from dataclasses import replace

import pytest

from llava.eval.report.kinds import build_kind_report
from tests.eval.benchmarks.twins import Twin, picture
from tests.eval.benchmarks.unjudged import DOCVQA, OCRBENCH, SEED

ACCEPTED = ["0.28", "invoice", "T.F. Riehl", "1200", "abcd", "yes"]
TYPES = [
    ["table/list", "figure/diagram"],
    ["handwritten"],
    ["form", "handwritten"],
    ["table/list", "layout"],
    [],
    ["form"],
]
SEVERAL = replace(
    DOCVQA,
    documents=[
        {
            "questionId": str(number),
            "question": f"What is written? (document {number})",
            "question_types": types,
            "image": picture(40, 50, number),
            "docId": number,
            "ucsf_document_id": "x",
            "ucsf_document_page_no": "1",
            "answers": [accepted],
        }
        for number, (accepted, types) in enumerate(zip(ACCEPTED, TYPES, strict=True))
    ],
)


def values(evaluate, tmp_path, twin: Twin, *models: list[str]) -> list[list[tuple]]:
    """Of each model's run (kind, n, score)."""
    for answers in models:
        evaluate(twin, answers)
    runs = sorted(tmp_path.glob("run*"))
    assert len(runs) == len(models)
    (table,) = build_kind_report(runs, "kind").tables
    of_run = [[(row.kind, row.scores[run.name]) for row in table.rows] for run in runs]
    return [[(kind, score.documents, pytest.approx(score.value)) for kind, score in rows] for rows in of_run]


def test_several_types_a_document_and_answers_that_are_empty(evaluate, tmp_path):
    """ANLS: one of seven letters is wrong, two of four are half; nothing is no answer."""
    soft = ["0.28", "invoise", "", "1200", "abxy", "no"]  # 1, 6/7, 0, 1, 1/2, 0
    hard = ["9", "invoice", "T.F. Riehl", "1200", "", "yes"]  # 0, 1, 1, 1, 0, 1
    of_runs = values(evaluate, tmp_path, SEVERAL, soft, hard)
    assert of_runs[0] == [
        ("all", 6, 100 * (1 + 6 / 7 + 0 + 1 + 1 / 2 + 0) / 6),
        ("figure/diagram", 1, 100),
        ("layout", 1, 100),
        ("table/list", 2, 100),
        ("form", 2, 0),
        ("handwritten", 2, 100 * (6 / 7) / 2),
        ("(none)", 1, 50),
    ]
    assert [row[2] for row in of_runs[1]] == [100 * 4 / 6, 0, 100, 50, 100, 100, 0]
    report = build_kind_report(sorted(tmp_path.glob("run*")), "question_types")
    (table,) = report.tables
    assert (table.name, table.metric, table.field) == ("DocVQA", "anls", "question_types")
    (other,) = [name for name in report.runs if name != report.reference]
    assert [row.differences[other].value for row in table.rows] == pytest.approx(
        [100 * (4 - 1 - 6 / 7 - 1 - 1 / 2) / 6, -100, 0, -50, 100, 100 - 300 / 7, -50]
    )


def test_dimensions_have_their_names(evaluate, tmp_path):
    """Five and ten, of which the data have the numbers alone."""
    assert values(evaluate, tmp_path, SEED, SEED.half) == [
        [("all", 4, 75), ("Instances Counting", 2, 100), ("Action Recognition", 2, 50)]
    ]


def test_the_kinds_of_ocrbench_in_its_order(evaluate, tmp_path):
    assert values(evaluate, tmp_path, OCRBENCH, OCRBENCH.half) == [
        [
            ("all", 4, 50),
            ("Regular Text Recognition", 1, 100),
            ("Scene Text-centric VQA", 1, 0),
            ("Key Information Extraction", 1, 0),
            ("Handwritten Mathematical Expression Recognition", 1, 100),
        ]
    ]
