"""The order of a bench's work and what becomes of rows that cannot be, with made-up results in place of trainings."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest

from llava.bench import fusion, work
from llava.bench.data_sets import DATA_SETS
from llava.bench.processes import Ended
from llava.cli import main
from llava.errors import LlavaError
from llava.train.loop.guard import NonFiniteError
from tests.bench.made_up import made_up_result

ROWS = ["none", "manager", "deepstack", "deepstack_zero", "deepstack_qwen3", "none_like_manager"]
ROWS += ["none_like_deepstack", "none_like_deepstack_qwen3"]


@pytest.fixture
def pretend(monkeypatch):
    """run_jobs that trains nothing; returns the names of the jobs that it did, and of those that shall fail."""
    did, fails = [], []

    def run_jobs(bench, jobs, at_once):
        for job in [job for job in jobs if bench.result(job) is None]:
            did.append((job.name, at_once))
            if job.name == "measure-digit_pages-deepstack_qwen3":
                yield Ended(job, "deepstack_qwen3 has no place here", refused=True)
            elif job.name in fails:
                yield Ended(job, "the disk is full")
            else:
                bench.folder(job).mkdir(parents=True)
                (bench.folder(job) / "result.json").write_text(json.dumps(made_up_result(job)))
                yield Ended(job)

    monkeypatch.setattr(fusion, "run_jobs", run_jobs)
    return did, fails


def run(out, *more: str) -> int:
    return main(["bench", "fusion", "--out", str(out), "--seeds", "2", "--methods", *ROWS, *more])


def test_what_a_reader_must_know_of_the_parts_stands_below_the_table(tmp_path, pretend, monkeypatch, capsys):
    remark = "the tower's best layer is not its last"
    parts = DATA_SETS["digit_pages"].parts
    monkeypatch.setitem(parts, "tiny", replace(parts["tiny"], remark=remark))
    assert run(tmp_path) == 0
    assert f"\n{remark}\n" in capsys.readouterr().out
    assert f"\n- {remark}\n" in (tmp_path / "table.md").read_text()


def test_what_is_done_in_which_order(tmp_path, pretend, capsys):
    did, _ = pretend
    assert run(tmp_path) == 0
    kinds = [(name.partition("-")[0], at_once) for name, at_once in did]
    assert list(dict.fromkeys(kinds)) == [("data", 2), ("parts", 2), ("measure", 1), ("grid", 2), ("run", 2)]
    runs = [name.removeprefix("run-digit_pages-") for name, _ in did if name.startswith("run-")]
    rows = ["none", "manager", "none_like_manager", "deepstack"]
    assert runs == [f"{row}-{seed}" for seed in (1, 2) for row in rows]
    width = json.loads((tmp_path / "bench.json").read_text())["rows"]["digit_pages none_like_manager"]
    assert width["fusion.projector_width"] is None  # it follows from what is measured
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["left_out"] == {
        "digit_pages deepstack_qwen3": "deepstack_qwen3 has no place here",
        "digit_pages none_like_deepstack": "deepstack adds no parameters",
        "digit_pages none_like_deepstack_qwen3": "deepstack_qwen3 is left out",
        "digit_pages deepstack_zero": "no rate of the grid came to an end that is finite",
    }
    assert results["data"]["digit_pages"]["rows"]["manager"]["rate"] == 2e-3
    printed = capsys.readouterr().out
    assert printed.count("jobs  ") == 1
    assert printed.index("time  about") < printed.index("] data-digit_pages:")
    assert "left out: digit_pages none_like_deepstack: deepstack adds no parameters" in printed
    # Of 40 are right in both seeds: 27 in `manager`, 24 in `none`, 37 in `none_like_manager`.
    assert "| manager | 67.5 " in (tmp_path / "table.md").read_text()
    assert "| +7.5 |" in (tmp_path / "table.md").read_text()
    assert "| +32.5* |" in (tmp_path / "table.md").read_text()


def test_going_on_does_what_is_left(tmp_path, pretend):
    did, _ = pretend
    assert run(tmp_path) == 0
    first = list(did)
    did.clear()
    assert run(tmp_path) == 0  # what was refused is tried again, with the code as it is now
    assert [name for name, _ in did] == ["measure-digit_pages-deepstack_qwen3"]
    did.clear()
    assert run(tmp_path, "--seeds", "3") == 0
    assert [name for name, _ in did][1:] == [
        f"run-digit_pages-{row}-3" for row in ("none", "manager", "none_like_manager", "deepstack")
    ]
    assert len(set(first)) == len(first)


def test_a_job_that_fails_is_told_and_the_others_go_on(tmp_path, pretend, capsys):
    _, fails = pretend
    fails.append("run-digit_pages-manager-2")
    assert run(tmp_path) == 1
    told = capsys.readouterr()
    assert told.err == "failed: run-digit_pages-manager-2: the disk is full\n"
    assert "without a score, since not all their seeds are done: digit_pages manager" in told.out
    assert "| none_like_manager | 92.5 " in (tmp_path / "table.md").read_text()
    fails.clear()
    assert run(tmp_path) == 0


def test_nothing_is_compared_without_the_reference(tmp_path, pretend, capsys):
    did, fails = pretend
    fails.append("measure-digit_pages-none")
    assert run(tmp_path) == 1
    assert [name for name, _ in did] == ["data-digit_pages", "parts-digit_pages", "measure-digit_pages-none"]
    assert "failed: measure-digit_pages-none: the disk is full" in capsys.readouterr().err
    assert not (tmp_path / "results.json").exists()


@pytest.mark.parametrize("diverging", ["stage_1", "recipe"])
def test_a_rate_whose_training_diverges_in_either_stage_has_no_loss(diverging, monkeypatch):
    """A run of the table ends with it, in one line."""

    def prepare(stage):
        if stage != diverging:
            raise AssertionError(f"{stage} is trained")
        return SimpleNamespace(trainer=SimpleNamespace(add_callback=lambda callback: None))

    def train(trainer):
        raise NonFiniteError("the loss of step 3 is nan", 3, ["a"])

    monkeypatch.setattr(work, "load_recipe", lambda name: name)
    monkeypatch.setattr(work, "prepare", prepare)
    monkeypatch.setattr(work, "train", train)
    task = {name: {"name": name} for name in dict.fromkeys([diverging, "recipe"])}
    assert work._train(task | {"kind": "grid"}, None) == {"held_out_loss": None}
    with pytest.raises(LlavaError, match=r"^training diverged: the loss of step 3 is nan$"):
        work._train(task | {"kind": "run"}, None)
