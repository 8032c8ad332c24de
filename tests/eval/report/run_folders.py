"""Finished runs as `llava eval` leaves them, written without a model."""

from llava.eval.benchmarks import BENCHMARKS
from llava.eval.store import save_task_run

RUN = {
    "model": "models/tiny",
    "weights": "0123456789ab",
    "image_noise": False,
    "limit": None,
    "protocol": "paper",
    "arm": None,
    "judge": None,
    "notes": [],
    "device": "cpu",
    "dtype": "float32",
    "date": "2026-01-02T03:04:05+00:00",
    "task_version": 1.0,
    "versions": {"lmms-eval": "0.7.3", "torch": "2.13.0"},
}
JUDGE = {"name": "judge-1", "prompts": "a1b2", "reviews": 10, "failed_reviews": 0}
# 10 documents each; the score of a benchmark is 10 times the number of right ones, or 100 * sum(points) / sum(of).
RIGHT = {
    "vqav2_val": 1, "ok_vqa_val2014": 2, "gqa": 3, "mmvet": 4, "seedbench": 5, "realworldqa": 6,
    "textvqa_val": 5, "chartqa": 5, "docvqa_val": 8, "infovqa_val": 5, "ocrbench": 10,
    "ai2d": 1, "scienceqa_img": 2, "mmmu_val": 3, "mathvista_testmini_format": 4,
    "dc100_en": 0, "live_bench_2407": 10, "live_bench_2409": 5,
}  # fmt: skip
POINTS = {"llava_in_the_wild": [[2, 5]] * 5 + [[9, 7.5]] * 5, "llava_wilder_small": [[9, 8]] * 5 + [[9, 7]] * 5}


def scores_of(task):
    """The ten scores of a benchmark, after RIGHT or POINTS."""
    if task in POINTS:
        return POINTS[task]
    right = [1.0] * RIGHT[task] + [0.0] * (10 - RIGHT[task])
    return [[score, 1] for score in right] if task == "ocrbench" else right


def save_benchmark(run, task, scores, **changes):
    """Saves `scores`, floats, [points, of] or None, as a benchmark's documents; `changes` go into the "run" block.

    changes["questions"] replaces the documents' questions, changes["doc_ids"] their numbers.
    """
    (known,) = [known for known in BENCHMARKS if known.task == task]
    metric = known.metric.split(",")[0]
    questions = changes.pop("questions", [f"{task} {index}" for index in range(len(scores))])
    doc_ids = changes.pop("doc_ids", range(len(scores)))
    rows = [
        {"doc_id": doc_id, "doc": {"question": question}, "target": "a", "answer": "b", "scores": {metric: score}}
        for doc_id, question, score in zip(doc_ids, questions, scores, strict=True)
    ]
    for row in rows:
        row["scores"] = {metric: score for metric, score in row["scores"].items() if score is not None}
    pairs = [score if isinstance(score, list) else [score, 1] for score in scores if score is not None]
    value = 100 * sum(points for points, _ in pairs) / sum(of for _, of in pairs)
    block = {**RUN, "judge": JUDGE if known.judged else None, "documents": len(rows), "metrics": [metric]}
    block |= {"score": value, **changes}
    return save_task_run(run, task, {"run": block, "results": {task: {known.metric: value / known.scale}}}, rows)


def save_all_benchmarks(run, but=(), **changes):
    """Saves every benchmark with its ten scores, except those in `but`."""
    for known in BENCHMARKS:
        if known.task not in but:
            save_benchmark(run, known.task, scores_of(known.task), **changes)
    return run


def save_digit_pages(run, *exact, anls=None, **changes):
    """Saves a task that is no benchmark, with two metrics; changes["means"] replaces the harness's means."""
    anls = anls or exact
    rows = [
        {"doc_id": index, "answer": "7", "scores": {"anls": soft, "exact_match": hard}}
        for index, (hard, soft) in enumerate(zip(exact, anls, strict=True))
    ]
    means = {"anls,none": sum(anls) / len(anls), "exact_match,none": sum(exact) / len(exact)}
    means = changes.pop("means", means)
    block = {**RUN, "score": None, "documents": len(rows), "metrics": ["anls", "exact_match"], **changes}
    return save_task_run(run, "digit_pages", {"run": block, "results": {"digit_pages": means}}, rows)
