import pytest

from llava.data.pairs.mixture import read_pair_mixture
from llava.data.pairs.pair import KINDS, LABELS
from llava.two_tower.tasks import MIXTURES, SETS, TASKS
from tests.paths import ROOT


@pytest.mark.parametrize("name", SETS)
def test_every_set_has_a_mixture_with_its_splits(name):
    row = SETS[name]
    mixture = read_pair_mixture(ROOT / MIXTURES / row.mixture, TASKS[row.task].pairs)
    assert {row.train, row.val, *row.tests} <= set(mixture.splits)
    files = {split: {file for entry in entries for file in entry.files} for split, entries in mixture.splits.items()}
    assert not files[row.train] & (files[row.val] | set().union(*(files[test] for test in row.tests)))
    assert all(file.suffix == ".arrow" for of_split in files.values() for file in of_split)
    assert name != "pretrain" or [len(entry.files) for entry in mixture.entries("train")] == [2, 1, 9, 31]


def test_every_mixture_is_a_sets():
    assert {path.name for path in (ROOT / MIXTURES).glob("*.yaml")} == {row.mixture for row in SETS.values()}


@pytest.mark.parametrize("name", TASKS)
def test_a_task_s_pairs_have_its_labels_and_images(name):
    task = TASKS[name]
    assert len(KINDS[task.pairs].images) == task.num_images
    if task.num_labels:
        assert len(LABELS[task.pairs]) == task.num_labels
