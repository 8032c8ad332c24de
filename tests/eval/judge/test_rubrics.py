"""What the seven judged benchmarks ask and how they score, beside lmms-eval's own functions on the same server."""

import importlib
import sys
from pathlib import Path

import pytest
from lmms_eval.utils import load_yaml_config

from llava.errors import LlavaError
from llava.eval.benchmarks import BENCHMARKS
from llava.eval.judge import rubrics
from llava.eval.judge.reviews import Reviewer, reviewing
from llava.eval.judge.settings import JudgeSettings
from tests.eval.judge_server import JudgeServer, question

UPSTREAM = Path(importlib.util.find_spec("lmms_eval").origin).parent / "tasks"


@pytest.fixture
def docs(make_image):
    """One document of each benchmark."""
    question_answer = {"question": "What is x?", "answer": "-1<AND>-5"}
    chart = {"pid": "7", "query": "Hint: two decimals.\nQuestion: How much?", "choices": None, "metadata": {}}
    live = {
        "id": "3",
        "question": "What is new?",
        "answer": "A bridge.",
        "criteria": "Name the bridge.",
        "subtask": "x",
    }
    live["images"] = [make_image(9, 8), make_image(7, 6, 1)]
    return {
        "mmvet": question_answer | {"question_id": "v1_0", "capability": "ocr,math"},
        "dc100_en": question_answer | {"image": make_image(8, 9)},
        "live_bench_2407": live | {"subtask": "Basic Understanding"},
        "live_bench_2409": live | {"subtask": "Divergent Thinking"},
        "llava_in_the_wild": {
            "question_id": 4,
            "question": "Where is it?",
            "category": "complex",
            "caption": "A harbour.",
            "gpt_answer": "In Genoa.",
        },
        "llava_wilder_small": {"Question": "Where is it?", "Answer": "In Genoa.", "image": make_image(8, 9)},
        "mathvista_testmini_format": chart
        | {"question_type": "free_form", "answer_type": "float", "precision": 2.0, "answer": "1.25"},
    }


@pytest.fixture
def score(tmp_path, monkeypatch):
    """A function: the scores of an answer, where the judge replies `reply`; and what the judge was asked."""
    monkeypatch.setenv("OPENAI_API_KEY", "k")

    def run(task, doc, answer, reply):
        with JudgeServer(lambda *_: reply).running() as server:
            (tmp_path / "reviews.jsonl").unlink(missing_ok=True)
            reviewer = Reviewer(JudgeSettings(server.url, "j", retries=0), tmp_path / "reviews.jsonl")
            reviewer.begin(counting=False)
            with reviewing(reviewer):
                scores = getattr(rubrics, "mathvista" if task.startswith("mathvista") else task)(doc, [answer])
        return scores, [payload for _, payload in server.requests]

    return run


def kinds(payload):
    """The kinds of a message's parts."""
    return [part["type"] for part in payload["messages"][0]["content"]]


def test_every_judged_benchmark_has_a_rubric():
    assert set(rubrics.RUBRICS) == {known.task for known in BENCHMARKS if known.judged}
    assert len(rubrics.RUBRICS) == 7


# task, lmms-eval's file, reply, its metric, its score there (in [0, 1] or points), the same here
SAME = [
    ("mmvet", "mmvet/mmvet.yaml", "0.6", "gpt_eval_score", lambda value: value["score"], 0.6),
    (
        "live_bench_2407",
        "live_bench/live_bench_2407.yaml",
        '{"Explanation": "so", "Rating": 7}',
        "gpt4_eval_score",
        lambda value: value["rating"] / 10,
        0.7,
    ),
    (
        "live_bench_2409",
        "live_bench/live_bench_2409.yaml",
        '{"Explanation": "so", "Rating": 7}',
        "gpt4_eval_score",
        lambda value: value["rating"] / 10,
        0.7,
    ),
    (
        "llava_in_the_wild",
        "llava-in-the-wild/llava-in-the-wild.yaml",
        "8 9.5\nThe second is better.",
        "gpt_eval_llava_complex",
        lambda value: tuple(reversed(value["scores"])),
        (9.5, 8),
    ),
    (
        "mathvista_testmini_format",
        "mathvista/mathvista_testmini_format.yaml",
        "1.25",
        "llm_as_judge_eval",
        # rounding fails there where the precision is a float, as the data has it
        lambda value: float(value["extraction"] == value["answer"]),
        1.0,
    ),
]


@pytest.mark.parametrize(("task", "file", "reply", "metric", "value", "expected"), SAME, ids=[row[0] for row in SAME])
def test_the_judge_is_asked_what_lmms_eval_asks(docs, score, monkeypatch, task, file, reply, metric, value, expected):
    scores, (ours,) = score(task, docs[task], "It is about one.", reply)
    assert scores[metric] == expected
    monkeypatch.delitem(sys.modules, "lmms_eval.tasks.mathvista.mathvista_evals", raising=False)
    with JudgeServer(lambda *_: reply).running() as server:
        for name in ("OPENAI_API_URL", "OPENAI_BASE_URL"):
            monkeypatch.setenv(name, server.url)
        monkeypatch.setenv("MODEL_VERSION", "j")
        monkeypatch.setenv("AZURE_API_KEY", "k")
        theirs = load_yaml_config(yaml_path=str(UPSTREAM / file))["process_results"](docs[task], ["It is about one."])
    ((_, asked),) = server.requests
    assert question(ours) == question(asked)
    assert (ours["max_tokens"], ours["temperature"]) == (asked["max_tokens"], asked["temperature"])
    kinds = [
        [part["type"] for part in payload["messages"][0]["content"]] for payload in (ours, asked) if "live" in task
    ]
    assert kinds in ([], [["image_url", "image_url", "text"]] * 2)
    assert value(theirs[metric]) == expected


def test_a_description_is_judged_with_its_picture(docs, score):
    scores, (asked,) = score("dc100_en", docs["dc100_en"], "A dog on a lawn.", "Fine.\nFinal Score: **85**/100")
    assert scores == {"llm_as_judge_eval": 0.85}
    assert question(asked).startswith("Text Caption: A dog on a lawn.\nFrom 0 to 100, how much do you rate")
    assert kinds(asked) == ["text", "image_url"]


def test_the_wilder_judge_sees_both_answers_and_the_picture(docs, score):
    scores, (asked,) = score("llava_wilder_small", docs["llava_wilder_small"], "In Rome.", "10 4\nNo.")
    assert scores == {"gpt_eval_llava_all": (4, 10)}
    start = (
        "[Question]\nWhere is it?\n\n[Assistant 1]\nIn Genoa.\n\n[End of Assistant 1]\n\n[Assistant 2]\nIn Rome.\n\n"
    )
    assert question(asked).startswith(
        start + "[End of Assistant 2]\n\n[System]\nWe would like to request your feedback"
    )
    assert kinds(asked) == ["text", "image_url"]


def test_a_failed_review_has_no_score(docs, score):
    for task in rubrics.RUBRICS:
        scores, asked = score(task, docs[task], "It is about one.", "")
        assert set(scores.values()) == {None}, task
        assert len(asked) == 1, task


def test_the_wild_document_counts_for_its_kind(docs, score):
    scores, _ = score("llava_in_the_wild", docs["llava_in_the_wild"], "In Genoa.", "8 8")
    assert scores == {"gpt_eval_llava_all": (8, 8), "gpt_eval_llava_complex": (8, 8)}
    with pytest.raises(LlavaError, match="document 4: unknown category 'poem'"):
        score("llava_in_the_wild", docs["llava_in_the_wild"] | {"category": "poem"}, "In Genoa.", "8 8")


def test_an_empty_answer_to_live_bench_is_worth_nothing_unasked(docs, score):
    assert score("live_bench_2409", docs["live_bench_2409"], "", "no") == ({"gpt4_eval_score": 0.0}, [])


CHOICE = {"question_type": "multi_choice", "answer_type": "text", "choices": ["red", "blue"], "answer": "blue"}


@pytest.mark.parametrize(
    ("fields", "response", "reply", "right"),
    [
        ({"answer_type": "integer", "answer": "4"}, "4", None, 1.0),
        ({"answer_type": "integer", "answer": "4"}, "5", None, 0.0),
        ({"answer_type": "integer", "answer": "4"}, "It is four.", "4", 1.0),
        ({"answer_type": "integer", "answer": "4"}, "", None, 0.0),
        ({"answer_type": "float", "precision": 1.0, "answer": "0.3"}, "0.3333", None, 1.0),
        ({"answer_type": "float", "precision": 2.0, "answer": "0.3"}, "0.3333", None, 0.0),
        ({"answer_type": "list", "precision": None, "answer": "[1, 2]"}, "From 1 to 2", "[1, 2]", 1.0),
        (CHOICE, "blue", None, 1.0),
        (CHOICE, "B", "B", 1.0),
        (CHOICE, "The sky is not red.", "(A) red", 0.0),
    ],
)
def test_mathvista_asks_only_where_the_response_is_more_than_an_answer(docs, score, fields, response, reply, right):
    doc = docs["mathvista_testmini_format"] | fields
    scores, requests = score("mathvista_testmini_format", doc, response, reply or "unasked")
    assert (scores, len(requests)) == ({"llm_as_judge_eval": right}, int(reply is not None))


@pytest.mark.parametrize(
    ("read", "replies"),
    [
        (
            rubrics.read_share,
            {"0.5": 0.5, "1": 1, "1.0.": 1, "| 0.3 |": 0.3, "0.0 since": 0, "1.5": None, "-0.5": None, "so 0.5": None},
        ),
        (
            rubrics.read_final_score,
            {
                "It is 30% dark.\nFinal Score: 75": 75,
                "**Final Score:** 80.5/100": 80.5,
                "Final Score: 10 at first.\nfinal score: 20": 20,
                "Final Score: 101": None,
                "Final Score: -5": None,
                "Final Score: n/a": None,
                "75": None,
            },
        ),
        (
            rubrics.read_points,
            {
                "8 9": (9, 8),
                "8, 9.5\n7 7": (9.5, 8),
                "**7/10 10/10**\n": (10, 7),
                "10 0": (0, 10),
                "0 5": None,
                "-1 -1": None,
                "8": None,
                "8 9 10": None,
                "8 11": None,
                "Assistant 1: 8, Assistant 2: 9": None,
                "Sorry.\n8 9": None,
            },
        ),
        (
            rubrics.read_rating,
            {
                '{"Explanation": "{so}", "Rating": "8"}': 8,
                '```json\n{"Rating": 0}\n```': 0,
                '{"Rating": "7/10"}': 7,
                '{"Rating": 11}': None,
                '{"Rating": -1}': None,
                '{"Rating": null}': None,
                '{"rating": 5}': None,
                '["Rating", 5]': None,
                "Rating: 5": None,
            },
        ),
    ],
)
def test_replies_are_read_strictly(read, replies):
    assert {reply: read(reply) for reply in replies} == replies


def test_benchmarks_are_summed_up_and_never_without_a_review():
    assert rubrics.mean([0.0, 0.5]) == 0.25
    assert rubrics.percentage([0.0, 0.5]) == 25
    assert rubrics.percentage([0.0, 0.0]) == 0
    assert rubrics.ratio([(8, 10), (9, 5)]) == pytest.approx(100 * 17 / 15)
    assert {rubrics.mean([1.0, None]), rubrics.percentage([1.0, None]), rubrics.ratio([(1, 1), None])} == {None}


def test_the_version_of_the_prompts_follows_their_words(monkeypatch):
    versions = [rubrics.prompts_version(task) for task in rubrics.RUBRICS]
    assert len(set(versions)) == 7
    assert versions == [rubrics.prompts_version(task) for task in rubrics.RUBRICS]
    rules = {kind: dict(rule) for kind, rule in rubrics._in_the_wild_rules().items()}
    rules["llava_bench_detail"]["prompt"] += "!"
    monkeypatch.setattr(rubrics, "_in_the_wild_rules", lambda: rules)
    assert rubrics.prompts_version("llava_in_the_wild") not in versions
