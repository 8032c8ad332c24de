"""The 20 benchmarks of the paper (section V-B3), as lmms-eval 0.7.3 runs them.

image_kind and resolution are what the paper says of single data sets (section V-E); it names no others. The paper gives
the mean of the 20 scores and no table of the single ones.
"""

from dataclasses import dataclass

CATEGORIES = ("General", "Text-rich", "Knowledge", "Real-world")
PAPER_OVERALL = {"baseline": 50.61, "manager": 51.67, "grid": 53.87, "grid_manager": 55.21}  # Table IV


@dataclass(frozen=True)
class Benchmark:
    """name: as the paper writes it. task, split: lmms-eval's. metric: its key in the harness's results.

    scale: what takes the harness's value to [0, 100]. judged: whether a judge reads the answers.
    image_kind: Natural, Abstract or Hybrid; resolution: Low or High; None where the paper does not say.
    """

    name: str
    task: str
    split: str
    metric: str
    scale: float
    category: str
    judged: bool = False
    image_kind: str | None = None
    resolution: str | None = None


BENCHMARKS = (
    Benchmark("VQAv2", "vqav2_val", "validation", "exact_match,none", 100, "General"),
    Benchmark("OKVQA", "ok_vqa_val2014", "val2014", "exact_match,none", 100, "General"),
    Benchmark("GQA", "gqa", "testdev", "exact_match,none", 100, "General"),
    Benchmark("MMVet", "mmvet", "test", "gpt_eval_score,none", 1, "General", judged=True),
    Benchmark("SEED-Bench", "seedbench", "test", "seed_all,none", 100, "General", False, "Natural", "High"),
    Benchmark("RealWorldQA", "realworldqa", "test", "exact_match,none", 100, "General"),
    Benchmark("TextVQA", "textvqa_val", "validation", "exact_match,none", 100, "Text-rich"),
    Benchmark("ChartQA", "chartqa", "test", "relaxed_overall,none", 100, "Text-rich"),
    Benchmark("DocVQA", "docvqa_val", "validation", "anls,none", 100, "Text-rich", False, "Abstract", "High"),
    Benchmark("InfoVQA", "infovqa_val", "validation", "anls,none", 100, "Text-rich"),
    Benchmark("OCRBench", "ocrbench", "test", "ocrbench_accuracy,none", 100, "Text-rich", False, "Hybrid", "Low"),
    Benchmark("AI2D", "ai2d", "test", "exact_match,flexible-extract", 100, "Knowledge"),
    Benchmark("ScienceQA", "scienceqa_img", "test", "exact_match,none", 100, "Knowledge"),
    Benchmark("MMMU", "mmmu_val", "validation", "mmmu_acc,none", 100, "Knowledge"),
    Benchmark(
        "MathVista", "mathvista_testmini_format", "testmini", "llm_as_judge_eval,none", 1, "Knowledge", judged=True
    ),
    Benchmark("ImageDC", "dc100_en", "test", "llm_as_judge_eval,none", 100, "Real-world", judged=True),
    Benchmark("MM-LiveBench-07", "live_bench_2407", "test", "gpt4_eval_score,none", 1, "Real-world", judged=True),
    Benchmark("MM-LiveBench-09", "live_bench_2409", "test", "gpt4_eval_score,none", 1, "Real-world", judged=True),
    Benchmark("LLaVA-Wild", "llava_in_the_wild", "train", "gpt_eval_llava_all,none", 1, "Real-world", judged=True),
    Benchmark("LLaVA-Wilder", "llava_wilder_small", "test", "gpt_eval_llava_all,none", 1, "Real-world", judged=True),
)


def benchmark(task: str) -> Benchmark | None:
    """The benchmark that a task is; None for other tasks."""
    return next((known for known in BENCHMARKS if known.task == task), None)
