"""The tables of a budget, in the terminal and as Markdown, computed from its JSON alone, beside the paper's numbers."""

from collections.abc import Sequence
from statistics import median
from typing import Any

from llava.bench.meter import median_interval
from llava.paper import ARMS, INFERENCE_MS, OVERALL, PARAMETERS, TABLE_IV, TRAINING_MS
from llava.text_table import markdown_table, text_table

ABSENT = "-"
PAPER_COLUMN = {"training": TRAINING_MS, "inference": INFERENCE_MS}
NOTES = (
    "ms: a sample, median over the rounds, with the range; ratio: median of the rounds' ratios to the baseline, with "
    "the 95% interval of the median by order statistics (with fewer than six rounds their range)",
    "FLOPs: ratio to the baseline of what is computed; whole: at the real sizes, the floor where arithmetic decides",
    "MiB: the most that is held beside the weights, median over the rounds, in training with the gradients",
    "paper: milliseconds a sample on two servers of 8 A100 (training) and on one A100 (inference, VQAv2), and ratios",
)


def ratios(results: dict[str, Any], phase: str, arm: str, key: str = "seconds") -> list[float] | None:
    """Of each round, an arm to the baseline; None where something was not measured, or was nothing."""
    base, *_ = results["arms"].values()
    pairs = [(one[key], two[key]) for one, two in zip(results["arms"][arm][phase], base[phase], strict=True)]
    return [ours / other for ours, other in pairs] if pairs and all(map(all, pairs)) else None


def parameter_rows(results: dict[str, Any]) -> list[list[str]]:
    """Head and arms: exact numbers, measured and at the real sizes, and what the paper states."""
    rows = [["arm", "parameters", "at the real sizes", "paper: M", "paper: mean of 20"]]
    for arm, measured in results["arms"].items():
        of_paper = TABLE_IV.rows[arm]
        numbers = (f"{measured['parameters']:,}", f"{measured['whole_parameters']:,}")
        rows.append([ARMS[arm], *numbers, f"{of_paper[PARAMETERS]:.2f}", f"{of_paper[OVERALL]:.2f}"])
    return rows


def phase_rows(results: dict[str, Any], phase: str) -> list[list[str]]:
    """Head and arms: `training` or `inference`."""
    size, (base, *_) = results["settings"]["batch_size"], results["arms"].values()
    paper, paper_base = PAPER_COLUMN[phase], TABLE_IV.rows["baseline"]
    rows = [[phase, "ms", "", "ratio", "", "FLOPs", "whole", "MiB", "ratio", "paper: ms", "ratio"]]
    for arm, of_arm in results["arms"].items():
        milliseconds = [1000 * one["seconds"] / size for one in of_arm[phase]]
        memory, held = [one["mib"] for one in of_arm[phase]], ratios(results, phase, arm, "mib")
        of_paper = TABLE_IV.rows[arm][paper]
        rows.append(
            [
                ARMS[arm],
                *_spread(milliseconds),
                *_interval(ratios(results, phase, arm)),
                f"x{of_arm['flops'][phase] / base['flops'][phase]:.3f}",
                f"x{of_arm['whole_flops'][phase] / base['whole_flops'][phase]:.3f}",
                ABSENT if None in memory or not memory else f"{median(memory):,.0f}",
                f"x{median(held):.2f}" if held else ABSENT,
                f"{of_paper:.2f}",
                f"x{of_paper / paper_base[paper]:.2f}",
            ]
        )
    return rows


def _spread(milliseconds: Sequence[float]) -> tuple[str, str]:
    """The median and the range; absent before the first round."""
    if not milliseconds:
        return ABSENT, ABSENT
    return _digits(median(milliseconds)), f"{_digits(min(milliseconds))} to {_digits(max(milliseconds))}"


def _interval(values: Sequence[float] | None) -> tuple[str, str]:
    """The median of ratios and its interval; absent where nothing was measured."""
    if not values:
        return ABSENT, ABSENT
    low, high = median_interval(values)
    return f"x{median(values):.3f}", f"[{low:.3f}, {high:.3f}]"


def _digits(value: float) -> str:
    """Four digits, or all in front of the point."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def render_text(results: dict[str, Any]) -> str:
    """Three tables below each other, and what their columns mean."""
    tables = [parameter_rows(results), *(phase_rows(results, phase) for phase in PAPER_COLUMN)]
    printed = [text_table(rows, right=[False, True]) for rows in tables]
    return "\n\n".join([results["title"], *printed, "\n".join(NOTES)]) + "\n"


def render_markdown(results: dict[str, Any]) -> str:
    """The same as Markdown."""
    tables = [parameter_rows(results), *(phase_rows(results, phase) for phase in PAPER_COLUMN)]
    parts = [f"## {results['title']}", *map(markdown_table, tables), "\n".join(f"- {note}" for note in NOTES)]
    return "\n\n".join(parts) + "\n"
