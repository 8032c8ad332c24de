import json

import pytest

from llava.data.expected import expected_samples, expected_table
from tests.paths import ROOT

MIXTURES = ROOT / "scripts/train/mixtures"
PAPER = {"stage1.yaml": 558_128, "stage1_5.yaml": 3.98e6, "stage2.yaml": 3.91e6}  # samples that the paper reports


@pytest.mark.parametrize("name", PAPER)
def test_the_stages_mixtures_add_up_to_the_paper_s_numbers(name):
    expected = expected_samples(MIXTURES / name)
    assert expected.samples == pytest.approx(PAPER[name], rel=0.002)
    assert expected.unknown == (("raven(cauldron)",) if name == "stage2.yaml" else ())


def test_the_total_of_the_three_stages_is_about_8_4_million():
    lines = expected_table(MIXTURES / "stage2.yaml").splitlines()
    assert lines == [
        "samples that the mixtures expect",
        "  stage1.yaml       558,128  1 set",
        "  stage1_5.yaml   3,976,688  7 sets",
        "  stage2.yaml     3,906,992  90 sets, without raven(cauldron): unknown",
        "  all stages      8,441,808",
    ]
    assert sum(expected_samples(MIXTURES / name).samples for name in PAPER) == 8_441_808


def test_the_comments_tell_the_same_numbers():
    for name in ("stage1_5.yaml", "stage2.yaml"):
        assert f"{expected_samples(MIXTURES / name).samples:,} samples" in (MIXTURES / name).read_text()


def write(path, *datasets: dict) -> None:
    path.write_text(json.dumps({"datasets": [{"json_path": f"{i}.json", **keys} for i, keys in enumerate(datasets)]}))


def test_strategies_are_applied_and_unknown_sets_are_named(tmp_path):
    write(
        tmp_path / "own.yaml",
        {"expected_rows": 100},
        {"expected_rows": "about 1001", "sampling_strategy": "random:10%"},
        {"sampling_strategy": "all"},
        {"expected_rows": 50, "sampling_strategy": "end:7"},
    )
    assert expected_samples(tmp_path / "own.yaml") == (100 + 101 + 7, 4, ("2",))
    assert expected_table(tmp_path / "own.yaml").splitlines()[1:] == [
        "  own.yaml         208  4 sets, without 2: unknown"
    ]


def test_a_mixture_that_expects_nothing_has_no_table(tmp_path):
    write(tmp_path / "stage1.yaml", {})
    assert expected_table(tmp_path / "stage1.yaml") == ""
