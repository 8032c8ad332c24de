"""The order of an epoch: a permutation, the same everywhere, of one modality and one cost at a time."""

import time

import numpy as np
import pytest

from llava.data import sampler as sampler_module
from llava.data.sampler import LengthGroupedSampler, epoch_order

COSTS = [(37 * index) % 101 + 1 for index in range(100)]
MULTIMODAL = [index % 3 != 0 for index in range(100)]
SIZES = {"batch_size": 2, "world_size": 4, "accumulation": 2}


def make_sampler(seed: int = 0, number: int = 100, **sizes) -> LengthGroupedSampler:
    return LengthGroupedSampler(COSTS[:number], MULTIMODAL[:number], seed=seed, **(SIZES | sizes))


def test_every_sample_comes_once_per_epoch_in_an_order_of_seed_and_epoch():
    sampler = make_sampler()
    first = list(sampler)
    assert sorted(first[:100]) == list(range(100))
    assert all(type(index) is int for index in first[:100])
    assert first == list(sampler) == list(make_sampler())
    assert first != list(make_sampler(seed=1))
    sampler.set_epoch(1)
    assert list(sampler) != first
    # Written down, so that a run can be resumed with another version of numpy.
    assert first[:16] == [38, 97, 65, 67, 2, 59, 62, 29, 53, 82, 91, 85, 28, 55, 47, 77]


@pytest.mark.parametrize("scan", [1, 20, 50])
@pytest.mark.parametrize("accumulation", [1, 3])
def test_an_order_that_is_made_in_blocks_is_the_same(monkeypatch, scan, accumulation):
    def orders() -> list[list]:
        sampler = make_sampler(accumulation=accumulation)
        whole = [list(sampler), np.concatenate(list(sampler.blocks())).reshape(-1).tolist()]
        assert whole[1] == [-1 if index is None else index for index in whole[0]]
        assert {block.shape[1] for block in sampler.blocks()} == {2}
        return whole

    expected = orders()
    monkeypatch.setattr(sampler_module, "SCAN", scan)
    assert len(list(make_sampler(accumulation=accumulation).blocks())) > 1
    assert orders() == expected


@pytest.mark.parametrize("number", [0, 1, 15, 16, 17, 99])
def test_any_number_of_samples(number):
    order = list(make_sampler(number=number))
    assert sorted(order[:number]) == list(range(number))
    assert order[number:] == [None] * (-number % 16)  # the last step is filled up, so that no rank repeats a sample
    assert len(make_sampler(number=number)) == len(order)


def test_full_steps_hold_one_modality_and_ranks_of_about_equal_cost():
    order = list(make_sampler())
    steps = [order[begin : begin + 16] for begin in range(0, 96, 16)][:5]
    assert len(steps) == 5
    for step in steps:
        assert len({MULTIMODAL[index] for index in step}) == 1
        micro_steps = [[COSTS[index] for index in step[begin : begin + 8]] for begin in (0, 8)]
        # The two micro-steps split the megabatch by cost.
        assert max(min(micro_steps, key=max)) <= min(max(micro_steps, key=max))
        for costs in micro_steps:
            sums = [sum(costs[rank * 2 : rank * 2 + 2]) for rank in range(4)]
            assert max(sums) - min(sums) <= max(costs) - min(costs)
            rounds = sorted(costs, reverse=True)
            assert sorted(sums) == sorted(rounds[rank] + rounds[7 - rank] for rank in range(4))


def test_an_optimizer_step_has_the_same_samples_however_it_is_cut():
    def steps(**sizes) -> list[set[int]]:
        order = list(make_sampler(**sizes))
        return [set(order[begin : begin + 16]) for begin in range(0, 100, 16)]

    assert steps(world_size=1, accumulation=8) == steps(world_size=8, accumulation=1) == steps()
    assert steps(batch_size=16, world_size=1, accumulation=1) == steps()


def test_costly_and_cheap_steps_are_mixed_over_the_epoch():
    """What is at the beginning of an epoch is no easier or harder than what is at its end."""
    costs = np.random.default_rng(0).lognormal(size=32_000)
    order = epoch_order(costs, costs > 0.5, batch_size=2, world_size=4, accumulation=4, seed=0, epoch=0)
    quarters = costs[order].reshape(4, -1).mean(axis=1)
    assert quarters == pytest.approx(costs.mean(), rel=0.05)


def test_a_million_rows_take_seconds():
    costs = np.random.default_rng(0).lognormal(size=1_000_000)
    started = time.process_time()
    order = epoch_order(costs, costs > 0.3, batch_size=2, world_size=16, accumulation=32, seed=0, epoch=3)
    assert time.process_time() - started < 10  # half a second on an idle machine
    assert len(set(order)) == 1_000_000
