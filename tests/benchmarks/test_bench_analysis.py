"""The benchmark of the analysis at tiny size: it runs, and its ratios are those of what it measured."""

import importlib
import sys

import pytest

from tests.paths import ROOT


@pytest.fixture
def bench_analysis(monkeypatch):
    """The script as a module."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("bench_analysis")


def test_the_command(bench_analysis, monkeypatch, capsys):
    words = ["--device", "cpu", "--dtype", "float32", "--tiny", "--pairs", "1", "--image", "100x70"]
    monkeypatch.setattr(sys, "argv", ["bench_analysis.py", *words])
    bench_analysis.main()
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.startswith("130 tokens, 5 crops; language model of 4 layers, 32 channels, 4 heads; tower of 4 layers")
    assert [line.split()[0] for line in lines] == ["plain", "analysed", "seconds", "memory"]


def test_the_table(bench_analysis):
    found = {"plain": [(2.0, 10.0), (1.0, 8.0)], "analysed": [(3.0, 11.0), (2.5, 12.0)]}
    assert bench_analysis.table(found, weights=10.0).splitlines() == [
        "plain          1.500 s          20 MiB, 10 MiB of them beside the weights",
        "analysed       2.750 s          22 MiB, 12 MiB of them beside the weights",
        "seconds         2.00 times (1.50 to 2.50); at most 3.0",
        "memory          1.10 times; at most 1.2",
    ]
