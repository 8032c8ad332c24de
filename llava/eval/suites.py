"""Named lists of tasks: what `llava eval --suite NAME` asks. Only `paper` has a mean that a report calls Overall."""

from llava.eval.benchmark_row import Benchmark
from llava.eval.benchmarks import BENCHMARKS, CATEGORIES

PAPER = "paper"
# Section V-B3 of the paper, in the order of llava/eval/benchmarks.py; that table may grow, this list does not.
_PAPER_TASKS = (
    *("vqav2_val", "ok_vqa_val2014", "gqa", "mmvet", "seedbench", "realworldqa"),
    *("textvqa_val", "chartqa", "docvqa_val", "infovqa_val", "ocrbench"),
    *("ai2d", "scienceqa_img", "mmmu_val", "mathvista_testmini_format"),
    *("dc100_en", "live_bench_2407", "live_bench_2409", "llava_in_the_wild", "llava_wilder_small"),
)
PAPER_BENCHMARKS: tuple[Benchmark, ...] = tuple(row for row in BENCHMARKS if row.task in _PAPER_TASKS)
SUITES: dict[str, tuple[str, ...]] = {
    PAPER: _PAPER_TASKS,
    "unjudged": tuple(row.task for row in PAPER_BENCHMARKS if not row.judged),
    "judged": tuple(row.task for row in PAPER_BENCHMARKS if row.judged),
    **{
        category.lower().replace("-", "_"): tuple(row.task for row in PAPER_BENCHMARKS if row.category == category)
        for category in CATEGORIES
    },
    "quickstart": ("digit_pages",),
}
