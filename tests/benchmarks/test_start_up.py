"""The data of the start-up benchmark: what it counts is what was asked for, and all of it can be trained on."""

import importlib

from llava.data.inspect_store import inspect_store
from llava.data.mixture import load_mixture
from tests.paths import ROOT


def test_the_records_are_sound(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    start_up = importlib.import_module("start_up")
    start_up.make_data(tmp_path, 103)
    samples = load_mixture(tmp_path / "mixture.yaml", 0).samples
    inspection = inspect_store(samples, tmp_path)
    assert len({sample.id for sample in samples}) == 103
    assert (inspection.faults, inspection.notes) == ([], {})
    assert [bool(sizes) for sizes in inspection.image_sizes] == [number % 20 > 0 for number in range(103)]
    resident, private = start_up.memory()
    assert resident > private > 1 << 20
