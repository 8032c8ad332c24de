"""Pictures: all text inside, nothing on top of anything, and what cannot be drawn."""

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from llava.errors import LlavaError
from llava.eval.benchmarks import BENCHMARKS
from llava.eval.report.comparison import build_report
from llava.eval.report.picture import COLOURS, draw
from tests.eval.report.run_folders import JUDGE, save_all_benchmarks, save_benchmark, save_digit_pages, scores_of


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Four runs with names of the usual length; the last has neither GQA nor OCRBench."""
    folder = tmp_path_factory.mktemp("runs")
    names = ("baseline", "stage2-grid_manager-AAUM", "grid", "grid_manager_blind")
    for name in names:
        save_all_benchmarks(folder / name, but=("gqa", "ocrbench") if name == names[-1] else ())
    return [folder / name for name in names]


def boxes(figure):
    """text -> its box in pixels, of everything written in the figure."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    axes = figure.axes
    texts = [figure._suptitle, *figure.legends[0].get_texts(), *(text for ax in axes for text in ax.texts)]
    texts += [label for ax in axes for label in (*ax.get_xticklabels(), *ax.get_yticklabels())]
    return [(text.get_text(), text.get_window_extent()) for text in texts if text.get_text().strip()]


@pytest.mark.parametrize("allow_missing", [False, True])
@pytest.mark.parametrize("style", ["bar", "radar"])
@pytest.mark.parametrize("count", [1, 4])
def test_text_is_inside_and_apart(runs, style, count, allow_missing):
    figure = draw(build_report(runs[-count:], allow_missing=allow_missing), style)
    found = boxes(figure)
    names = {text for text, _ in found}
    missing = {"GQA", "OCRBench"} if style == "radar" or count == 1 else set()
    assert {known.name for known in BENCHMARKS} - missing <= names
    assert all(any(run.name in text for text in names) for run in runs[-count:])
    width, height = figure.canvas.get_width_height()
    outside = [text for text, box in found if box.x0 < 0 or box.y0 < 0 or box.x1 > width or box.y1 > height]
    assert outside == []
    horizontal = found if style == "radar" else [item for item in found if item[0] not in BENCHMARK_NAMES]
    together = [
        (text, other)
        for index, (text, box) in enumerate(horizontal)
        for other, second in horizontal[index + 1 :]
        if box.shrunk(0.95, 0.8).overlaps(second.shrunk(0.95, 0.8))
    ]
    assert together == []
    table = figure.legends[0].get_window_extent()
    above = [text for axes in figure.axes for text in (*axes.texts, *axes.get_xticklabels())]
    assert min(text.get_window_extent().y0 for text in above) > table.y1 + 3


@pytest.mark.parametrize("style", ["bar", "radar"])
@pytest.mark.parametrize(("benchmarks", "digits"), [(3, False), (0, True), (2, True), (20, True)])
def test_any_tasks_are_drawn(tmp_path, benchmarks, digits, style):
    """Few and many, benchmarks and others, of runs with long names."""
    names = [f"stage2-grid_manager-AAUM-lr1e-5-seed{seed}-a-name-{'so-' * 20}long" for seed in range(6)]
    for name in names:
        for known in BENCHMARKS[:: len(BENCHMARKS) // benchmarks] if benchmarks else ():
            save_benchmark(tmp_path / name, known.task, scores_of(known.task))
        if digits:
            save_digit_pages(tmp_path / name, 1.0, 0.0, 0.5)
    report = build_report([tmp_path / name for name in names])
    if style == "radar" and benchmarks == 0:
        with pytest.raises(LlavaError, match="a radar needs 3 scores that every run has, these runs have 2; draw bars"):
            draw(report, style)
        return
    figure = draw(report, style)
    found = boxes(figure)
    assert digits == ("exact_match" in {text for text, _ in found})
    width, height = figure.canvas.get_width_height()
    assert [text for text, box in found if box.x0 < 0 or box.y0 < 0 or box.x1 > width or box.y1 > height] == []
    assert len({text for text, _ in found if "-5-seed" in text}) == 6
    if style == "radar":
        pairs = [(a, b) for index, a in enumerate(found) for b in found[index + 1 :]]
        assert [(a[0], b[0]) for a, b in pairs if a[1].shrunk(0.95, 0.8).overlaps(b[1].shrunk(0.95, 0.8))] == []


BENCHMARK_NAMES = {known.name for known in BENCHMARKS}  # the bars' are slanted: their boxes overlap, they do not


def test_bars_have_the_scores_as_heights(runs):
    above, below = draw(build_report(runs[:1]), "bar").axes
    assert [bar.get_height() for bar in above.containers[1]] == pytest.approx([35, 66, 25, 71.6, 49.9])
    heights = dict(
        zip((known.name for known in BENCHMARKS), (bar.get_height() for bar in below.containers[1]), strict=True)
    )
    assert (heights["GQA"], heights["LLaVA-Wilder"]) == (pytest.approx(30), pytest.approx(120))
    assert below.get_ylim()[1] > 120


def test_refused_averages_are_not_drawn(tmp_path):
    save_benchmark(tmp_path / "run", "gqa", [1.0, 0.0])
    (axes,) = draw(build_report([tmp_path / "run"]), "bar").axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["GQA"]


def test_what_cannot_be_drawn(tmp_path):
    save_benchmark(tmp_path / "failed", "mmvet", [1.0, 0.0], judge={**JUDGE, "failed_reviews": 1}, score=None)
    with pytest.raises(LlavaError, match="none of the runs has a score, there is nothing to draw"):
        draw(build_report([tmp_path / "failed"]), "bar")
    names = [f"run{index}" for index in range(len(COLOURS) + 1)]
    for name in names:
        save_benchmark(tmp_path / name, "gqa", [1.0, 0.0])
    with pytest.raises(LlavaError, match="a radar needs 3 benchmarks that every run has, these runs have 1; draw bars"):
        draw(build_report([tmp_path / names[0]]), "radar")
    with pytest.raises(LlavaError, match="8 runs cannot be told apart in a picture, 7 can"):
        draw(build_report([tmp_path / name for name in names]), "bar")
