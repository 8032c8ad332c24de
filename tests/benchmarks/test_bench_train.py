"""The benchmark at tiny widths: it runs, its sides compute the same, and its meter measures."""

import importlib
import json
import os
import subprocess
import sys

import pytest
import torch

from llava.bench.arms import ArmModel, Side, our_loss
from llava.bench.meter import median_interval
from llava.errors import LlavaError
from tests.paths import ROOT

ARM = "grid_manager"
NAIVE = [
    "logits at every position",
    "eager attention",
    "managers map by map",
    "nothing checkpointed",
    "checkpointed by torch",
    "by torch, reentrant",
    "pixels as float32",
]


@pytest.fixture
def module(monkeypatch):
    """A function: the name of a module in benchmarks/, which is no package, to that module."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module


def test_the_command(forked_python, tmp_path):
    command = [forked_python.command, "benchmarks/bench_train.py", "--device", "cpu", "--dtype", "float32", "--tiny"]
    command += ["--layers", "2", "--runs", "1", "--inputs", "100x70", "56x56+384x384", "--json", f"{tmp_path}/out.json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "out.json").read_text())["results"]
    assert [(result["input"], result["side"]) for result in results] == [
        *(("100x70", side) for side in [ARM, *NAIVE]),
        *(("56x56+384x384", side) for side in [ARM, *NAIVE, "samples packed"]),
    ]
    assert all(result["seconds"] > 0 for result in results)
    assert [result["crops"] for result in results[:8]] == 8 * [5]  # 100x70 fills 2x2 tiles of 56 pixels
    for side in [ARM, *NAIVE]:
        assert done.stdout.count(f"\n{side} ") == 2
    assert done.stdout.count("\nsamples packed ") == 1


def test_what_managers_add(module):
    bench = ArmModel("cpu", "float32", vision_layers=4, text_layers=5, tiny=True)
    found = module("bench_overhead").overhead(bench, [(56, 56)], pairs=3)
    assert (len(found["wall"]), len(found["cpu"])) == (3, 3)
    assert found["launches"]["manager"] > found["launches"]["baseline"] > 1000
    assert found["tflop"]["manager"] > found["tflop"]["baseline"] > 0
    told = module("bench_overhead").overhead_table("56x56", found)
    assert [line[:26].strip() for line in told.splitlines()[1:5]] == [
        *("seconds of the clock", "seconds of the processor", "operations launched", "FLOPs, the floor")
    ]


@pytest.mark.parametrize(("count", "expected"), [(2, (1, 2)), (6, (1, 6)), (20, (6, 15)), (25, (8, 18))])
def test_the_interval_of_a_median(count, expected):
    """Tabulated ranks of the sign test at 95%."""
    assert median_interval(list(range(count, 0, -1))) == expected


@pytest.mark.parametrize("number", range(len(NAIVE) + 1))
def test_the_other_ways_have_our_loss_and_gradients(module, number):
    sides = module("bench_sides")
    bench = ArmModel("cpu", "float32", vision_layers=4, text_layers=5, tiny=True)
    assert len(bench.manager_config.vision_layers) > 1
    assert len(bench.manager_config.injection_layers) > 1
    (ours,), naive = [Side(ARM, ARM)], sides.naive_sides("grid_manager", sides.NAIVE)
    assert [side.name for side in naive] == NAIVE
    found = []
    for side in (ours, [*naive, sides.packed_side("grid_manager")][number]):
        bench.use(side)
        bench.model.zero_grad()
        loss = side.loss(bench.model, bench.batch([(200, 90), (56, 56)], side.packing))
        loss.backward()
        gradients = {name: p.grad.clone() for name, p in bench.model.named_parameters() if p.grad is not None}
        found.append((loss.item(), gradients))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    assert set(found[0][1]) == set(found[1][1])
    for name, gradient in found[0][1].items():
        torch.testing.assert_close(found[1][1][name], gradient, rtol=1e-3, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")
    assert found[0][1]["model.fusion.managers.1.scores"].abs().max() > 0


def test_a_side_that_computes_something_else_is_refused(module):
    bench_train = module("bench_train")
    bench = ArmModel("cpu", "float32", vision_layers=2, text_layers=2, tiny=True)

    def wrong(model, batch):
        return our_loss(model, batch) * 1.01

    with pytest.raises(LlavaError, match=r"100x70: 'wrong' has a loss of .*, but grid has "):
        bench_train.bench_input(bench, "100x70", [Side("grid", "grid"), Side("wrong", "grid", wrong)], 1)


def test_the_arms_are_those_of_the_recipes():
    bench = ArmModel("cpu", "float32", vision_layers=2, text_layers=2, tiny=True)
    crops, managed = [], []
    for side in [Side(arm, arm) for arm in ("baseline", "manager", "grid", "grid_manager")]:
        bench.use(side)
        crops.append(len(bench.batch([(100, 70)])["pixel_values"]))
        managed.append(any(True for _ in bench.model.model.fusion.parameters()))
    assert crops == [1, 1, 5, 5]
    assert managed == [False, True, False, True]


@pytest.mark.skipif(sys.platform != "linux", reason="the resident set's peak is read from /proc")
@pytest.mark.parametrize("size", [100, 400])
def test_the_meter_sees_what_a_step_holds_at_most(size):
    """In a process of its own: the resident set of one that runs other tests moves by itself."""
    script = f"""
import torch
from llava.bench.meter import measure_step

def loss(model, batch):
    for _ in range(2):  # one after the other
        torch.ones({size} * 2**18).sum()
    return model(batch["x"]).sum()

model, batch = torch.nn.Linear(1, 1), {{"x": torch.ones(1, 1)}}
loss(model, batch).backward()  # what torch sets up once
model.zero_grad()
print(measure_step(model, loss, batch)[1])
assert model.weight.grad is None
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "benchmarks"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == pytest.approx(size, abs=20)
