"""The table of benchmarks against lmms-eval's own files, and what the two protocols make of them."""

import re
from collections import Counter

import pytest
import yaml

from llava.eval.benchmarks import BENCHMARKS, CATEGORIES, benchmark
from llava.eval.task import task_config, task_names, upstream_tasks

# What the paper's run did otherwise than lmms-eval 0.7.3 does; None: the file names no limit.
HARNESS_TOKENS = {
    "mmmu_val": 128,
    "mathvista_testmini_format": 16384,
    "ok_vqa_val2014": None,
    "seedbench": None,
    "textvqa_val": None,
}
each_benchmark = pytest.mark.parametrize("known", BENCHMARKS, ids=lambda known: known.task)


class Reader(yaml.SafeLoader):
    """Reads lmms-eval's files; a function is its name."""


Reader.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))


def read(file) -> dict:
    config = yaml.load(file.read_text(), Reader)
    return {**(read(file.parent / config["include"]) if "include" in config else {}), **config}


def test_there_are_20():
    assert (
        len(BENCHMARKS) == len({known.task for known in BENCHMARKS}) == len({known.name for known in BENCHMARKS}) == 20
    )
    assert Counter(known.category for known in BENCHMARKS) == dict(zip(CATEGORIES, (6, 5, 4, 5), strict=True))
    assert sum(known.judged for known in BENCHMARKS) == 7
    assert task_names() == [*(known.task for known in BENCHMARKS), "digit_pages", "text_pages"]
    assert benchmark("digit_pages") is None


@each_benchmark
def test_a_row_says_what_the_harness_has(known):
    file = upstream_tasks() / known.yaml
    config = read(file)
    assert config["task"] == known.task
    assert (config["dataset_path"], config.get("dataset_name")) == (known.dataset, known.config)
    assert config["test_split"] == known.split
    metric, rule = known.metric.split(",")
    assert metric in [entry["metric"] for entry in config["metric_list"]]
    assert [entry["name"] for entry in config.get("filter_list", [{"name": "none"}])] == [rule]
    assert known.judged == ("gpt" in metric or "judge" in metric)
    code = "".join(module.read_text() for module in file.parent.glob("*utils*.py"))
    for column in set(known.columns) - {"image_1"}:  # MMMU's images are named by its prompts
        read_there = re.search(rf"""doc(\[|\.get\()['"]{column}['"]""", code)
        assert read_there or config["doc_to_target"] == column, column
    assert config["generation_kwargs"].get("max_new_tokens") == HARNESS_TOKENS.get(known.task, known.tokens)


@each_benchmark
def test_the_papers_protocol_is_greedy_and_of_its_lengths(known):
    paper, harness = task_config(known.task, "paper"), task_config(known.task, "harness")
    settings = paper["generation_kwargs"]
    assert (settings["max_new_tokens"], settings["temperature"], settings["do_sample"]) == (known.tokens, 0, False)
    assert harness["generation_kwargs"] == read(upstream_tasks() / known.yaml)["generation_kwargs"]
    assert set(harness["generation_kwargs"]) <= set(settings)
    unversioned = ("textvqa_val", "docvqa_val", "infovqa_val")
    assert (paper["metadata"]["version"] == "not given") == (known.task in unversioned)
    assert "submission" not in [entry["metric"] for entry in paper["metric_list"]]
    assert known.metric.split(",")[0] in [entry["metric"] for entry in paper["metric_list"]]


def test_the_two_lengths_that_the_paper_changed():
    assert {task: benchmark(task).tokens for task in ("mmmu_val", "mathvista_testmini_format")} == {
        "mmmu_val": 16,
        "mathvista_testmini_format": 1024,
    }


def test_ocrbench_is_over_the_documents_asked():
    assert benchmark("ocrbench").score(0.002, count=4) == pytest.approx(50.0)  # two points of a thousand, four asked
    assert benchmark("ocrbench").score(0.7, count=1000) == pytest.approx(70.0)
    assert benchmark("mmvet").score(31.5, count=218) == 31.5


def test_a_random_option_of_mmmu_depends_on_the_document_alone():
    import random

    process = task_config("mmmu_val", "paper")["process_results"]
    options = "['one', 'two', 'three', 'four']"

    def parsed(number):
        identifier = f"validation_Art_{number}"
        doc = {"id": identifier, "question_type": "multiple-choice", "options": options, "answer": "A"}
        return process(doc, ["nothing"])["mmmu_acc"]["parsed_pred"][0]

    random.seed(1)
    first = [parsed(number) for number in range(40)]
    state = random.getstate()
    assert [parsed(number) for number in reversed(range(40))] == first[::-1]
    assert random.getstate() == state
    assert set(first) == set("ABCD")
