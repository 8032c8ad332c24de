"""`llava bench seeds` on runs as `llava eval` leaves them: its table computed anew from its JSON, and refusals."""

import json
import re
import shutil
from statistics import mean

import numpy as np
import pytest
from scipy import stats

from llava.bench.seeds import join_seeds
from llava.bench.seeds_table import render_markdown, seed_lines
from llava.cli import main
from llava.errors import LlavaError
from llava.eval.store import save_task_run
from tests.eval.report.run_folders import RUN

PAGES, SEEDS = 40, (1, 2, 3)
KINDS = ("place", "read")
SHARES = {"grid": (0.6, 0.2), "baseline": (0.3, 0.1), "grid_blind": (0.1, 0.0)}  # right of each kind


def save(folder, shares, seed: int, pages: int = PAGES, answer: str = "1", **changes):
    """A run whose questions are right at random, one of each kind a page; the rows lie in no order."""
    random, rows = np.random.default_rng(seed), []
    for page in range(pages):
        for kind, share in zip(KINDS, shares):
            doc = {"question_id": f"{page}-{kind}", "question": "Which?", "answers": [answer], "kind": kind}
            right = float(random.random() < share)
            scores = {"anls": right, "exact_match": right, f"exact_match_{kind}": right}
            rows.append({"doc_id": len(rows), "doc": doc, "target": [answer], "answer": "1", "scores": scores})
    metrics = list(dict.fromkeys(metric for row in rows for metric in row["scores"]))
    means = {f"{one},none": mean(row["scores"][one] for row in rows if one in row["scores"]) for one in metrics}
    run = {**RUN, "weights": f"{folder}", "documents": len(rows), "metrics": metrics} | changes
    random.shuffle(rows)
    save_task_run(folder, "digit_pages", {"run": run, "results": {"digit_pages": means}}, rows)


@pytest.fixture(scope="module")
def arms(tmp_path_factory):
    folder = tmp_path_factory.mktemp("eval")
    for arm, shares in SHARES.items():
        for seed in SEEDS:
            harder = [share * (1 - seed / 10) for share in shares]
            save(folder / arm / f"seed{seed}", harder, 10 * seed + len(arm), image_noise=arm.endswith("blind"))
    return [folder / arm for arm in SHARES]


@pytest.fixture(scope="module")
def joined(arms, tmp_path_factory):
    """What the command wrote: the JSON, and the Markdown's rows by (questions, arm)."""
    out = tmp_path_factory.mktemp("table")
    files = ["--json", str(out / "seeds.json"), "--markdown", str(out / "seeds.md")]
    assert main(["bench", "seeds", *map(str, arms), *files]) == 0
    head, _, *lines = [line for line in (out / "seeds.md").read_text().splitlines() if line.startswith("|")]
    rows = [dict(zip(head.split("|")[1:-1], line.split("|")[1:-1], strict=True)) for line in lines]
    rows = [{name.strip(): cell.strip() for name, cell in row.items()} for row in rows]
    return json.loads((out / "seeds.json").read_text()), {(row["questions"], row["arm"]): row for row in rows}


def numbers(cell: str) -> list[float]:
    return [float(number) for number in re.findall(r"[-+]?\d+\.\d", cell)]


def test_the_tables_arithmetic_by_hand(joined):
    results, rows = joined
    assert list(rows) == [(kind, arm) for kind in ("all", *KINDS) for arm in SHARES]
    for (kind, arm), row in rows.items():
        asked = [index for index, one in enumerate(results["questions"]) if kind in ("all", one["kind"])]
        assert row["n"] == str(len(asked)) == str(PAGES * (2 if kind == "all" else 1))
        scores = {
            name: [100 * mean(runs[str(seed)]["right"][index] for index in asked) for seed in SEEDS]
            for name, runs in results["arms"].items()
        }
        assert numbers(row["by seed"]) == pytest.approx(scores[arm], abs=0.051)
        assert numbers(row["exact match"])[0] == pytest.approx(mean(scores[arm]), abs=0.051)
        assert float(row["spread"]) == pytest.approx(max(scores[arm]) - min(scores[arm]), abs=0.051)
        if arm == "baseline":
            assert (row["- baseline"], row["boot"], row["t"]) == ("-", "-", "-")
            continue
        gained = np.subtract(scores[arm], scores["baseline"])
        assert numbers(row["- baseline"]) == pytest.approx([gained.mean()], abs=0.051)
        if gained.std() > 0:
            students = stats.t.interval(0.95, len(SEEDS) - 1, loc=gained.mean(), scale=stats.sem(gained))
            assert numbers(row["t"]) == pytest.approx(students, abs=0.06)
        ends = [*numbers(row["boot"]), *numbers(row["t"])]
        assert row["- baseline"].endswith("*") == (min(ends) > 0 or max(ends) < 0)
    assert any(row["- baseline"].endswith("*") for row in rows.values())


@pytest.mark.parametrize(("kind", "arm"), [("all", "grid"), ("read", "grid"), ("place", "grid_blind")])
def test_the_intervals_of_each_kind_by_a_slow_bootstrap(joined, kind, arm):
    """Drawn one by one from the JSON: the same documents for arm and baseline, and the same seeds."""
    results, rows = joined
    random, pages, drawn = np.random.default_rng(5), {}, []
    for index, one in enumerate(results["questions"]):
        if kind in ("all", one["kind"]):
            pages.setdefault(one["id"].split("-")[0], []).append(index)
    pages = list(pages.values())
    for _ in range(1500):
        chosen = [index for page in random.integers(len(pages), size=len(pages)) for index in pages[page]]
        seeds = random.integers(1, len(SEEDS) + 1, size=len(SEEDS))
        both = [
            sum(sum(map(results["arms"][name][str(seed)]["right"].__getitem__, chosen)) for seed in seeds)
            / (len(SEEDS) * len(chosen))
            for name in (arm, "baseline")
        ]
        drawn.append((100 * both[0], 100 * (both[0] - both[1])))
    score, difference = np.percentile(drawn, [2.5, 97.5], axis=0).T
    row = rows[kind, arm]
    assert numbers(row["exact match"])[1:] == pytest.approx(score, abs=1.6)
    assert numbers(row["boot"]) == pytest.approx(difference, abs=1.6)
    assert np.diff(score) > 8 or kind == "place"  # so that the tolerance is little


def test_the_terminal_shows_the_same_cells(arms, joined, capsys):
    assert main(["bench", "seeds", *map(str, arms)]) == 0
    printed = capsys.readouterr().out
    for row in joined[1].values():
        assert re.search(r"\s+".join(map(re.escape, row.values())), printed), row
    assert "mean over the seeds 1, 2, 3, with the 95% interval of the bootstrap over 40 documents" in printed
    assert "every image replaced by noise: grid_blind\n" in printed
    assert max(map(len, printed.splitlines()[:12])) <= 120


def test_fewer_seeds_another_reference_and_one_seed(arms):
    joined = join_seeds(arms[::2], "digit_pages", None, 2)
    assert (joined["reference"], joined["seeds"]) == ("grid", [1, 2])
    assert join_seeds(arms, "digit_pages", "grid_blind", None)["reference"] == "grid_blind"
    one = join_seeds(arms, "digit_pages", None, 1)
    (line,) = [line for line in seed_lines(one) if (line.kind, line.arm) == ("all", "grid")]
    assert (line.spread, line.score.difference_t, line.score.differs) == (0, None, False)
    assert "| all | grid | 80 |" in render_markdown(one)


def save_two_tower(folder, seed: int):
    """A run of VQA, whose kinds stand in the questions' ids, and one of retrieval: three pages, a text of each."""
    random = np.random.default_rng(seed)
    rows = [
        {
            "doc_id": number,
            "doc": {"file": "a.parquet", "row": 1 + number // 2, "text": "?", "question_id": f"{number // 2}-{kind}"},
            "target": {"yes": 1.0},
            "answer": "yes",
            "scores": {"vqa_score": float(random.integers(2))},
        }
        for number, kind in enumerate(("what", "where", "what", "count"))
    ]
    ranked = []
    for number, query in enumerate(("text", "text", "text", "image", "image", "image")):
        rank = int(random.integers(1, 12))
        hits = {f"{'ir' if query == 'text' else 'tr'}_r{most}": float(rank <= most) for most in (1, 5, 10)}
        doc = {"file": "b.parquet", "row": 1 + number % 3, "query": query}
        ranked.append({"doc_id": number, "doc": doc, "target": 0, "answer": str(rank), "scores": hits})
    for task, of_task in (("vqav2.test", rows), ("retrieval.test", ranked)):
        metrics = list(dict.fromkeys(metric for row in of_task for metric in row["scores"]))
        means = {f"{one},none": mean(row["scores"][one] for row in of_task if one in row["scores"]) for one in metrics}
        run = {**RUN, "weights": f"{folder}", "documents": len(of_task), "metrics": metrics}
        save_task_run(folder, task, {"run": run, "results": {task: means}}, of_task)
    return rows, ranked


def test_two_tower_runs_are_joined_by_their_scores_and_recalls(tmp_path):
    saved = {seed: save_two_tower(tmp_path / "manager" / f"seed{seed}", seed) for seed in (1, 2)}
    joined = join_seeds([tmp_path / "manager"], "vqav2.test", None, None)
    assert joined["metric"] == "vqa_score"
    assert [(one["document"], one["kind"]) for one in joined["questions"]] == [
        *[("0", "what"), ("0", "where"), ("1", "what"), ("1", "count")]
    ]
    for seed, (rows, _) in saved.items():
        right = joined["arms"]["manager"][str(seed)]["right"]
        assert right == [row["scores"]["vqa_score"] for row in rows]
    joined = join_seeds([tmp_path / "manager"], "retrieval.test", None, None)
    recalls = {line.kind: line for line in seed_lines(joined)}
    assert list(recalls) == ["all", "ir_r1", "ir_r5", "ir_r10", "tr_r1", "tr_r5", "tr_r10"]
    by_hand = {
        kind: [
            100 * mean(row["scores"][kind] for row in ranked if kind in row["scores"]) for _, ranked in saved.values()
        ]
        for kind in recalls
        if kind != "all"
    }
    for kind, of_seeds in by_hand.items():
        assert recalls[kind].score.by_seed == pytest.approx(of_seeds)
        assert recalls[kind].questions == 3
    assert recalls["all"].score.by_seed == pytest.approx([mean(values) for values in zip(*by_hand.values())])
    assert "| questions | arm | n | recall | by seed |" in render_markdown(joined)
    assert "over 3 documents and 2 seeds" in render_markdown(joined)


def refused(arms, **changes) -> str:
    with pytest.raises(LlavaError) as error:
        join_seeds(arms, **{"task": "digit_pages", "reference": None, "seeds": None} | changes)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_cannot_be_compared_is_refused(arms, tmp_path):
    grid, baseline, _ = arms
    other = tmp_path / "other"
    for seed in SEEDS:
        save(other / f"seed{seed}", (0.5, 0.5), seed, pages=PAGES - 1)
    assert refused([baseline, other]) == f"{other}/seed1: 78 questions, {baseline}/seed1 has 80"
    for seed in SEEDS:
        save(other / f"seed{seed}", (0.5, 0.5), seed, answer="2" if seed == 2 else "1")
    assert refused([baseline, other]) == f"{other}/seed2: other questions than {baseline}/seed1, though as many (80)"
    shutil.rmtree(other / "seed2")
    assert refused([baseline, other]) == f"{other}: no seed2, which baseline has"
    assert refused([baseline, grid], seeds=4) == f"{baseline}: no seed4"
    assert refused([baseline, grid], reference="gird") == "--reference: unknown arm 'gird'; did you mean grid?"
    assert refused([baseline, grid], task="gqa") == f"{baseline}/seed1: no results of gqa, only of digit_pages"
    assert refused([tmp_path / "absent"]) == f"{tmp_path}/absent: no such folder"
    assert refused([tmp_path]).startswith(f"{tmp_path}: holds no runs of seeds (seed1, seed2, ..), as ")
    assert refused([grid, grid]) == f"{grid}: another arm is already called 'grid'; rename one of the folders"


def test_one_model_as_two_seeds_is_refused(arms, tmp_path):
    twice = tmp_path / "twice"
    for seed in SEEDS:
        save(twice / f"seed{seed}", (0.5, 0.5), seed, weights="0123456789ab" if seed > 1 else "ba9876543210")
    assert refused([twice]) == f"{twice}/seed3: the same weights (0123456789ab) as {twice}/seed2"


def test_other_versions_are_told_below_the_table(arms, tmp_path, capsys):
    other = tmp_path / "other"
    for seed in SEEDS:
        save(other / f"seed{seed}", (0.5, 0.5), seed, versions={"lmms-eval": "0.7.9" if seed == 3 else "0.7.3"})
    assert main(["bench", "seeds", str(arms[1]), str(other)]) == 0
    assert "other/seed2), 0.7.9 (other/seed3)\n" in capsys.readouterr().out


def test_a_wrong_folder_is_one_line(tmp_path, capsys):
    assert main(["bench", "seeds", str(tmp_path / "absent")]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path}/absent: no such folder\n"
    assert main(["bench", "seeds", str(tmp_path), "--seeds", "0"]) == 2
    assert capsys.readouterr().err == "error: --seeds must be above 0; found 0\n"
