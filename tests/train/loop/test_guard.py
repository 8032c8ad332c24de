"""A loss or gradient that is not finite stops the run and is kept; a rank that dies takes the others with it."""

import contextlib
import os
import platform
import re
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
import torch

from llava.data.dataset import Origin, SupervisedDataset
from llava.train.folders.interim import checkpoints_folder, complete_checkpoints
from llava.train.loop.guard import Guard, NonFiniteError
from llava.train.stage import prepare
from tests.train import faulty

BATCH = {"input_ids": torch.ones(2, 3, dtype=torch.int64)}


@pytest.fixture
def guard(tmp_path):
    made = Guard(tmp_path / "nonfinite", torch.device("cpu"))
    made.begin([dict(BATCH), dict(BATCH)], [[Origin(name, id=name) for name in pair] for pair in ("ab", "cd")])
    for loss in (1.0, 2.0):
        made.add_loss(torch.tensor(loss))
    return made


def test_what_is_finite_passes(guard, tmp_path):
    assert guard.agree(7, torch.tensor(3.0), 15, True) == [[15, 1]]
    assert guard.agree(7, 3.0, 2**53, False) == [[2**53, 0]]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("loss", [float("nan"), float("inf"), -float("inf")])
def test_a_loss_points_at_its_micro_batch(guard, tmp_path, loss):
    guard.losses[1] = torch.tensor(loss)
    with pytest.raises(
        NonFiniteError, match=r"step 7: a loss is not finite.*\n  rank 0: loss .*, from c, d; its"
    ) as caught:
        guard.agree(7, float("nan"))
    path = tmp_path / "nonfinite/step-7-rank-0.pt"
    assert str(caught.value).endswith(f"saved in {path}")
    saved = torch.load(path)
    assert (saved["step"], saved["rank"], len(saved["batches"])) == (7, 0, 1)
    assert saved["batches"][0]["samples"] == ["c", "d"]
    assert torch.equal(saved["batches"][0]["inputs"]["input_ids"], BATCH["input_ids"])


@pytest.mark.parametrize("norm", [torch.tensor(float("nan")), float("inf"), -1.0])
def test_a_gradient_points_at_the_whole_step(guard, tmp_path, norm):
    """-1 is DeepSpeed's word for it."""
    with pytest.raises(
        NonFiniteError, match=r"step 7: a gradient is not finite.*\n  rank 0: loss 1, 2, .* a, b, c, d;"
    ):
        guard.agree(7, norm)
    assert len(torch.load(tmp_path / "nonfinite/step-7-rank-0.pt")["batches"]) == 2


def test_a_batch_that_cannot_be_saved_is_named_all_the_same(guard, tmp_path):
    (tmp_path / "nonfinite").touch()
    with pytest.raises(NonFiniteError, match=r"from a, b, c, d; its batch could not be saved in .*exists"):
        guard.agree(7, float("nan"))


@pytest.fixture
def poisoned(monkeypatch):
    """sample-5 has a pixel that is not a number."""
    load = SupervisedDataset.__getitem__

    def spoiled(self, index):
        encoded = load(self, index)
        if "'sample-5'" in encoded["sample"].name:
            encoded["pixel_values"] = encoded["pixel_values"].float()
            encoded["pixel_values"][0, 0, 0, 0] = float("nan")
        return encoded

    monkeypatch.setattr(SupervisedDataset, "__getitem__", spoiled)


def found_in(log: Path) -> tuple[int, list[tuple[int, str, Path]]]:
    """The step that was not finite, and per blamed rank: its number, its samples, its saved batch."""
    printed = log.read_text()
    (step,) = re.findall(r"^error: step (\d+): a loss is not finite; nothing was saved after it$", printed, re.M)
    lines = re.findall(r"^  rank (\d): loss nan, .* from (.*); its batch saved in (.*)$", printed, re.M)
    return int(step), [(int(rank), samples, Path(path)) for rank, samples, path in lines]


def test_a_poisoned_sample(tiny_recipe, poisoned, tmp_path, monkeypatch):
    made, log = tiny_recipe("1", **{"run.save_steps": 1, "data.workers": 1}), tmp_path / "log"
    assert faulty.run(made, log) == [2]
    step, ((rank, samples, path),) = found_in(log)
    assert rank == 0
    assert "sample 'sample-5' (" in samples
    checkpoints = complete_checkpoints(checkpoints_folder(made.run.output_dir))
    assert [path.name for path in checkpoints] == [f"checkpoint-{done}" for done in (step - 1, step - 2) if done > 0]

    replayed = torch.load(path)["batches"][0]
    model = prepare(made).trainer.model
    assert model(**replayed["inputs"], skip_logits=True).loss.isnan()
    replayed["inputs"]["pixel_values"].nan_to_num_()
    assert model(**replayed["inputs"], skip_logits=True).loss.isfinite()

    monkeypatch.undo()
    assert faulty.run(made, log) == [0]
    assert not checkpoints_folder(made.run.output_dir).exists()


def test_poisoned_weights(tiny_recipe, tmp_path):
    class Poison(faulty.AfterStep):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            if state.global_step == self.step:
                next(parameter for parameter in model.parameters() if parameter.requires_grad).data.fill_(float("nan"))

    made, log = tiny_recipe("1"), tmp_path / "log"
    assert faulty.run(made, log, faulty.with_callbacks(Poison(2, None))) == [2]
    step, ((rank, samples, _),) = found_in(log)
    assert (step, rank) == (3, 0)
    assert samples.count("sample 'sample-") == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "precision"), [("zero3", "fp32"), ("zero2", "fp32"), ("zero1", "bf16"), (None, "fp32")]
)
def test_a_poisoned_sample_of_one_rank_stops_both(tiny_recipe, poisoned, tmp_path, strategy, precision):
    keys = {"run.deepspeed": strategy and f"scripts/train/deepspeed/{strategy}.json", "run.save_steps": 1}
    keys["run.precision"] = precision
    made, log = tiny_recipe("1", **keys), tmp_path / "log"
    assert faulty.run(made, log, ranks=2) == [2, 2], log.read_text()
    step, ((rank, samples, path),) = found_in(log)
    assert "sample 'sample-5' (" in samples
    assert path.name == f"step-{step}-rank-{rank}.pt"
    assert [saved.name for saved in path.parent.iterdir()] == [path.name]
    assert torch.load(path)["batches"][0]["inputs"]["pixel_values"].isnan().sum() == 1
    checkpoints = complete_checkpoints(checkpoints_folder(made.run.output_dir))
    assert [path.name for path in checkpoints] == [f"checkpoint-{done}" for done in (step - 1, step - 2) if done > 0]
    assert "Traceback" not in log.read_text()


class Script:
    """stage1.sh on two processes, for 2,000 steps, with a data loader's worker each."""

    def __init__(self, keys: dict, log: Path, path: str = os.environ["PATH"]):
        arguments = [
            word for key, value in keys.items() for word in (f"--{key}", "none" if value is None else str(value))
        ]
        environment = {**os.environ, "NPROC_PER_NODE": "2", "OMP_NUM_THREADS": "1", "PATH": path}
        self.log = log
        with log.open("w") as out:
            command = ["bash", "scripts/train/stage1.sh", "--arm", "manager", *arguments]
            self.process = subprocess.Popen(command, stdout=out, stderr=out, env=environment)

    def wait_for(self, text: str, timeout: float = 240) -> None:
        end = time.monotonic() + timeout
        while text not in self.log.read_text():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < end, self.log.read_text()
            time.sleep(0.1)


def ranks(launcher: psutil.Process) -> list[int]:
    """The ranks' process ids, torchrun's children."""
    by_rank = {}
    with contextlib.suppress(psutil.NoSuchProcess):  # it is none, and has ended meanwhile
        for child in launcher.children():
            environment = child.environ()
            if "RANK" in environment:
                by_rank[int(environment["RANK"])] = child.pid
    return [by_rank[rank] for rank in sorted(by_rank)]


def running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.slow
def test_the_launcher(tiny_keys, tmp_path, forked_python):
    """A rank is killed, then torchrun is asked to stop, then it is killed: each time the next start goes on.

    The first two starts are forks; what dies with its launcher is the real python's.
    """
    keys = {"run.output_dir": f"{tmp_path}/out", "data.workers": 1, "optim.epochs": 500, "run.save_steps": 10}
    keys = tiny_keys("1", **keys)
    script = Script(keys, tmp_path / "log1", forked_python.path)
    script.wait_for("checkpoint-10 (")
    (of_launcher,) = (found for found in map(ranks, forked_python.processes()) if found)
    assert len(of_launcher) == 2
    killed = time.monotonic()
    os.kill(of_launcher[1], signal.SIGKILL)
    assert script.process.wait(60) != 0
    print(f"all ended {time.monotonic() - killed:.1f} s after rank 1 was killed")
    assert not any(map(running, of_launcher))
    _, left = psutil.wait_procs(forked_python.processes(), timeout=30)  # the watcher of a fork ends just behind it
    assert not left
    told = f"error: rank 1 on {platform.node()} (process {of_launcher[1]}) was killed by SIGKILL"
    assert told in script.log.read_text()

    script = Script(keys, tmp_path / "log2", forked_python.path)
    script.wait_for("goes on after step ")
    script.wait_for("/2000  loss")
    script.process.terminate()
    assert script.process.wait(60) != 0
    printed = script.log.read_text()
    assert "SIGTERM: saves a checkpoint after this step and exits" in printed
    (step,) = re.findall(r"stopped by SIGTERM after step (\d+) of 2000; the same command goes on from", printed)
    assert "DataLoader worker" not in printed

    script = Script(keys, tmp_path / "log3")
    script.wait_for(f"goes on after step {step}, from {tmp_path}/out.checkpoints/checkpoint-{step}\n")
    script.wait_for(f"step {int(step) + 1}/2000")
    of_launcher = ranks(psutil.Process(script.process.pid))
    assert len(of_launcher) == 2
    script.process.kill()
    script.process.wait()
    end = time.monotonic() + 20
    while any(map(running, of_launcher)) and time.monotonic() < end:
        time.sleep(0.1)
    assert not any(map(running, of_launcher))
