"""The simulation shows what it claims, and counts waiting as one would by hand."""

import subprocess

import numpy as np
import pytest

from benchmarks.simulate_sampler import MIXTURE, Samples, play, reference_order, simulate
from llava.mllm.cost import Cost


def test_the_mixture_is_whole():
    assert sum(share for share, _, _ in MIXTURE) == pytest.approx(1)


def test_a_micro_step_lasts_as_long_as_its_slowest_rank():
    samples = Samples(*np.array([[0] * 4, [1, 0, 3, 2], [10, 20, 5, 5], [1, 2, 3, 4]], dtype=float))
    cost = Cost(crop=100, token=10, token_pair=1, supervised=1000)
    outcome = play([0, 1, 2, 3, 0], samples, cost, batch_size=1, world_size=2)
    ranks = [[100 + 100 + 100 + 1000, 200 + 400 + 2000], [300 + 50 + 25 + 3000, 200 + 50 + 25 + 4000]]
    slowest = max(ranks[0]) + max(ranks[1])
    assert outcome.time == slowest
    assert outcome.waiting == pytest.approx(1 - sum(map(sum, ranks)) / (2 * slowest))
    assert outcome.padding == 0
    pair = play([0, 1], samples, cost, batch_size=2, world_size=1)
    assert (pair.waiting, pair.padding) == (0, pytest.approx(10 / 40))
    assert pair.time == 100 + 10 * 40 + 2 * 20**2 + 3000
    packed = play([0, 1], samples, cost, batch_size=2, world_size=1, packing=True)
    assert (packed.padding, packed.time) == (0, 100 + 10 * 30 + 10**2 + 20**2 + 3000)


def test_the_reference_balances_its_lengths():
    lengths, modalities = np.arange(1, 41), np.arange(40) % 5 > 0  # 32 and 8
    order = reference_order(lengths, modalities, batch_size=2, world_size=2, accumulation=2, seed=0)
    assert sorted(order) == list(range(40))
    for begin in range(0, 40, 8):
        assert len(set(modalities[order[begin : begin + 8]])) == 1
        sums = lengths[order[begin : begin + 8]].reshape(4, 2).sum(axis=1)
        assert max(sums) - min(sums) <= max(lengths[order[begin : begin + 8]]) - min(lengths[order[begin : begin + 8]])


def test_ranks_wait_less_than_with_the_references_grouping():
    outcomes = simulate(4000, batch_size=2, world_size=4, accumulation=8, seed=1)
    reference, ours = outcomes["reference"], outcomes["ours"]
    assert ours.waiting < reference.waiting / 4
    assert ours.padding < reference.padding / 2
    assert outcomes["ours, packed"].time < ours.time < reference.time


def test_the_command(forked_python):
    command = [forked_python.command, "benchmarks/simulate_sampler.py", "--samples", "1000", "--world_size", "2"]
    done = subprocess.run([*command, "--accumulation", "4"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "the reference's share of waiting is " in done.stdout
