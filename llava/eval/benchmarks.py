"""What we know of benchmarks, one row each, as lmms-eval 0.7.3 runs them: today the paper's 20 (section V-B3).

A row says how a task is asked and scored; which tasks are asked together stands in llava/eval/suites.py. A task of
lmms-eval without a row can be asked, too (llava/eval/catalogue.py), and is scored by its own headline metric.

image_kind and resolution are what the paper says of single data sets (section V-E); it names no others. The paper gives
the mean of the 20 scores and no table of the single ones.

Two protocols. "paper": as the authors' run asked, images in front of the text as it is written (MMMU's `<image 1>`
stays), greedy answers of at most `tokens`. "harness": lmms-eval's own settings and its chat messages. Scoring is
lmms-eval 0.7.3's under both: it extracts RealWorldQA's letters, normalises VQAv2's answers and folds OCRBench's
full-width letters in other ways than the version of 2024 did.
"""

from collections.abc import Callable
from dataclasses import dataclass

CATEGORIES = ("General", "Text-rich", "Knowledge", "Real-world")
PROTOCOLS = ("paper", "harness")
NO_LIMIT = 1024  # what LLaVA-OneVision generates at most for tasks that name no limit


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """name: as the paper writes it. task, split: lmms-eval's. metric: its key in the harness's results.

    scale: what takes the harness's value to [0, 100]. judged: whether a judge reads the answers.
    image_kind: Natural, Abstract or Hybrid; resolution: Low or High; None where the paper does not say.
    yaml: the task's file in lmms_eval/tasks. dataset, config: where its documents lie on the hub. columns: the fields
    that the task reads. images: the configuration in which the images lie once each (columns id, image), where the
    documents name them (column imageId) and do not hold them. tokens: the longest answer in the paper's run.
    document_score: from what the task's process_results gives for one document to its score in [0, 1], or to
    [points, of] where the benchmark's value is a ratio of sums.
    documents: what the harness divides by, however many documents are asked; None where it takes their mean.
    note: what a reader of the score has to know.
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
    yaml: str
    dataset: str
    config: str | None = None
    columns: tuple[str, ...]
    images: str | None = None
    tokens: int = NO_LIMIT
    document_score: Callable[[object], float | list[float]] = float
    documents: int | None = None
    note: str | None = None

    def score(self, value: float, count: int) -> float:
        """The headline on [0, 100], of the harness's value over `count` documents."""
        return value * self.scale * (self.documents / count if self.documents else 1.0)


def _same_option(value: dict) -> float:
    return float(value["pred"].strip().lower() == value["answer"].strip().lower())


def _mmmu(value: dict) -> float:
    from lmms_eval.tasks.mmmu.utils import evaluate_mmmu

    _, accuracy = evaluate_mmmu([value])
    return float(accuracy["acc"])


def _one_of_fixed(value: dict) -> list[float]:
    return [float(value["score"]), 1.0]


BENCHMARKS = (
    Benchmark(
        name="VQAv2",
        task="vqav2_val",
        split="validation",
        metric="exact_match,none",
        scale=100,
        category="General",
        yaml="vqav2/vqav2_val.yaml",
        dataset="lmms-lab-encoder/VQAv2",
        columns=("question_id", "question", "answers", "image"),
        tokens=16,
    ),
    Benchmark(
        name="OKVQA",
        task="ok_vqa_val2014",
        split="val2014",
        metric="exact_match,none",
        scale=100,
        category="General",
        yaml="ok_vqa/ok_vqa_val2014.yaml",
        dataset="lmms-lab-encoder/OK-VQA",
        columns=("question_id", "question", "answers", "image"),
    ),
    Benchmark(
        name="GQA",
        task="gqa",
        split="testdev",
        metric="exact_match,none",
        scale=100,
        category="General",
        yaml="gqa/gqa.yaml",
        dataset="lmms-lab-encoder/GQA",
        config="testdev_balanced_instructions",
        columns=("question", "answer", "image"),
        images="testdev_balanced_images",
        tokens=16,
    ),
    Benchmark(
        name="MMVet",
        task="mmvet",
        split="test",
        metric="gpt_eval_score,none",
        scale=1,
        category="General",
        judged=True,
        yaml="mmvet/mmvet.yaml",
        dataset="lmms-lab-encoder/MMVet",
        columns=("question_id", "question", "answer", "capability", "image"),
    ),
    Benchmark(
        name="SEED-Bench",
        task="seedbench",
        split="test",
        metric="seed_all,none",
        scale=100,
        category="General",
        image_kind="Natural",
        resolution="High",
        yaml="seedbench/seedbench.yaml",
        dataset="lmms-lab-encoder/SEED-Bench",
        columns=(
            *("question_id", "question", "choice_a", "choice_b", "choice_c", "choice_d"),
            *("answer", "data_type", "image"),
        ),
        document_score=_same_option,
    ),
    Benchmark(
        name="RealWorldQA",
        task="realworldqa",
        split="test",
        metric="exact_match,none",
        scale=100,
        category="General",
        yaml="realworldqa/realworldqa.yaml",
        dataset="lmms-lab-encoder/RealWorldQA",
        columns=("question", "answer", "image"),
        tokens=16,
    ),
    Benchmark(
        name="TextVQA",
        task="textvqa_val",
        split="validation",
        metric="exact_match,none",
        scale=100,
        category="Text-rich",
        yaml="textvqa/textvqa_val.yaml",
        dataset="lmms-lab-encoder/textvqa",
        columns=("question_id", "question", "answers", "image"),
    ),
    Benchmark(
        name="ChartQA",
        task="chartqa",
        split="test",
        metric="relaxed_overall,none",
        scale=100,
        category="Text-rich",
        yaml="chartqa/chartqa.yaml",
        dataset="lmms-lab-encoder/ChartQA",
        columns=("question", "answer", "type", "image"),
        tokens=16,
    ),
    Benchmark(
        name="DocVQA",
        task="docvqa_val",
        split="validation",
        metric="anls,none",
        scale=100,
        category="Text-rich",
        image_kind="Abstract",
        resolution="High",
        yaml="docvqa/docvqa_val.yaml",
        dataset="lmms-lab-encoder/DocVQA",
        config="DocVQA",
        columns=("question", "answers", "image"),
        tokens=32,
    ),
    Benchmark(
        name="InfoVQA",
        task="infovqa_val",
        split="validation",
        metric="anls,none",
        scale=100,
        category="Text-rich",
        yaml="infovqa/infovqa_val.yaml",
        dataset="lmms-lab-encoder/DocVQA",
        config="InfographicVQA",
        columns=("question", "answers", "image"),
        tokens=32,
    ),
    Benchmark(
        name="OCRBench",
        task="ocrbench",
        split="test",
        metric="ocrbench_accuracy,none",
        scale=100,
        category="Text-rich",
        image_kind="Hybrid",
        resolution="Low",
        yaml="ocrbench/ocrbench.yaml",
        dataset="echo840/OCRBench",
        columns=("dataset", "question", "question_type", "answer", "image"),
        tokens=128,
        document_score=_one_of_fixed,
        documents=1000,
        note="the harness's own value is the points over 1000, however few documents are asked; "
        "the score is over the documents asked",
    ),
    Benchmark(
        name="AI2D",
        task="ai2d",
        split="test",
        metric="exact_match,flexible-extract",
        scale=100,
        category="Knowledge",
        yaml="ai2d/ai2d.yaml",
        dataset="lmms-lab-encoder/ai2d",
        columns=("question", "options", "answer", "image"),
        tokens=16,
    ),
    Benchmark(
        name="ScienceQA",
        task="scienceqa_img",
        split="test",
        metric="exact_match,none",
        scale=100,
        category="Knowledge",
        yaml="scienceqa/scienceqa_img.yaml",
        dataset="lmms-lab-encoder/ScienceQA",
        config="ScienceQA-IMG",
        columns=("question", "choices", "answer", "hint", "image"),
        tokens=16,
    ),
    Benchmark(
        name="MMMU",
        task="mmmu_val",
        split="validation",
        metric="mmmu_acc,none",
        scale=100,
        category="Knowledge",
        yaml="mmmu/mmmu_val.yaml",
        dataset="lmms-lab-encoder/MMMU",
        columns=("id", "question", "options", "answer", "question_type", "image_1"),
        tokens=16,
        document_score=_mmmu,
        note="an answer that names no option counts as a random one, drawn from a seed and the document's id",
    ),
    Benchmark(
        name="MathVista",
        task="mathvista_testmini_format",
        split="testmini",
        metric="llm_as_judge_eval,none",
        scale=1,
        category="Knowledge",
        judged=True,
        yaml="mathvista/mathvista_testmini_format.yaml",
        dataset="AI4Math/MathVista",
        columns=(
            *("pid", "question", "decoded_image", "choices", "answer"),
            *("question_type", "answer_type", "query", "metadata"),
        ),
    ),
    Benchmark(
        name="ImageDC",
        task="dc100_en",
        split="test",
        metric="llm_as_judge_eval,none",
        scale=100,
        category="Real-world",
        judged=True,
        yaml="internal_eval/dc100_en.yaml",
        dataset="lmms-lab-encoder/DC100_EN",
        columns=("question", "answer", "image"),
    ),
    Benchmark(
        name="MM-LiveBench-07",
        task="live_bench_2407",
        split="test",
        metric="gpt4_eval_score,none",
        scale=1,
        category="Real-world",
        judged=True,
        yaml="live_bench/live_bench_2407.yaml",
        dataset="lmms-eval/LiveBench",
        config="2024-07",
        columns=("id", "images", "question", "answer", "criteria", "subtask"),
    ),
    Benchmark(
        name="MM-LiveBench-09",
        task="live_bench_2409",
        split="test",
        metric="gpt4_eval_score,none",
        scale=1,
        category="Real-world",
        judged=True,
        yaml="live_bench/live_bench_2409.yaml",
        dataset="lmms-eval/LiveBench",
        config="2024-09",
        columns=("id", "images", "question", "answer", "criteria", "subtask"),
    ),
    Benchmark(
        name="LLaVA-Wild",
        task="llava_in_the_wild",
        split="train",
        metric="gpt_eval_llava_all,none",
        scale=1,
        category="Real-world",
        judged=True,
        yaml="llava-in-the-wild/llava-in-the-wild.yaml",
        dataset="lmms-lab-encoder/llava-bench-in-the-wild",
        columns=("question", "category", "caption", "gpt_answer", "image"),
        tokens=4096,
        document_score=list,
    ),
    Benchmark(
        name="LLaVA-Wilder",
        task="llava_wilder_small",
        split="test",
        metric="gpt_eval_llava_all,none",
        scale=1,
        category="Real-world",
        judged=True,
        yaml="llava_wilder/llava_wilder_small.yaml",
        dataset="lmms-lab-encoder/LLaVA-Bench-Wilder",
        columns=("Question", "Answer", "image"),
        tokens=4096,
        document_score=list,
    ),
)


def benchmark(task: str) -> Benchmark | None:
    """The benchmark that a task is; None for other tasks."""
    return next((row for row in BENCHMARKS if row.task == task), None)
