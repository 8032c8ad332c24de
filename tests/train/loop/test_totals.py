"""What run.json tells of a run as a whole, however often it was started again."""

import json
import shutil
import signal
from datetime import datetime
from pathlib import Path

import pytest
import torch

from llava.data.dataset import Origin
from llava.data.mixture import Mixture
from llava.train import stage as stage_module
from llava.train.folders.interim import checkpoints_folder, read_mark
from llava.train.folders.manifest import end_manifest
from llava.train.loop.totals import Totals
from llava.train.stage import run_stage, train
from tests.train import faulty


def test_two_ranks_and_an_earlier_start(monkeypatch):
    monkeypatch.setattr("llava.train.loop.totals.time.time", lambda: 1000.0)
    before = {"started": 60.0, "seconds": 50.0, "loss": 7.0, "skipped": 3, "shortened": 1}
    ranks = [Totals(torch.device("cpu"), 940.0, before) for _ in range(2)]
    ranks[0].count([Origin("a", skipped=True), Origin("b"), Origin("c", skipped=True)])
    ranks[1].count([Origin("d", shortened=True), Origin("e", skipped=True)])
    for loss in (1.5, 0.25):
        ranks[0].add_loss(torch.tensor(loss))
    ranks[1].add_loss(torch.tensor(2.25))
    found = ranks[0].joined([rank.of_rank() for rank in ranks])
    assert found == {"started": 60.0, "seconds": 110.0, "loss": 9.0, "skipped": 6, "shortened": 2}
    known = {"steps": 4, "tokens_seen": 9, "optimizer_groups": [], "attention": "sdpa"}
    manifest = end_manifest({"git": "abc"}, found, mixture=Mixture([], []), **known)
    assert manifest == {
        "git": "abc",
        "mixture": [],
        **known,
        "train_loss": 2.25,
        "skipped": 6,
        "shortened": 2,
        "started": "1970-01-01T00:01:00+00:00",
        "ended": "1970-01-01T00:16:40+00:00",
        "seconds": 110.0,
    }


@pytest.fixture
def recipe(tiny_recipe, data_folder, tmp_path):
    """Four steps on 16 samples, of which 5 are bad and 2 too long; a worker loads ahead."""
    images = shutil.copytree(data_folder, tmp_path / "images")
    for index in (1, 4, 7, 10, 13):
        (images / f"{index}.png").unlink()
    records = json.loads((images / "captions.json").read_text())
    for index in (2, 11):
        records[index]["conversations"][1]["value"] = "A red car. " * 100
    (images / "captions.json").write_text(json.dumps(records))
    keys = {"data.mixture": f"{images}/captions.yaml", "data.image_folder": str(images), "data.workers": 1}
    return tiny_recipe("1", **keys, **{"data.on_bad_sample": "skip", "data.on_over_long": "truncate"})


def test_a_run_that_was_stopped_tells_of_both_starts(recipe, monkeypatch, capsys):
    def stopped(trainer):
        trainer.add_callback(faulty.AfterStep(2, lambda: signal.raise_signal(signal.SIGTERM)))
        return train(trainer)

    with monkeypatch.context() as patched:
        patched.setattr(stage_module, "train", stopped)
        with pytest.raises(SystemExit):
            run_stage(recipe)
    noted = read_mark(checkpoints_folder(recipe.run.output_dir) / "checkpoint-3")["totals"]
    assert noted["skipped"] < 5  # of 12 of the 16
    assert 0 < noted["seconds"] < 100
    run_stage(recipe)
    folder = Path(recipe.run.output_dir)
    found = json.loads((folder / "run.json").read_text())
    assert (found["steps"], found["skipped"], found["shortened"]) == (4, 5, 2)
    message = "5 bad samples were skipped; 2 samples were too long and were shortened"
    assert capsys.readouterr().out.endswith(f"saved {folder}; {message}\n")
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    losses = [entry["loss"] for entry in history if "loss" in entry]
    assert len(losses) == 4
    assert found["train_loss"] == pytest.approx(sum(losses) / 4, rel=1e-6)
    assert found["seconds"] > noted["seconds"]
    assert datetime.fromisoformat(found["started"]).timestamp() == int(noted["started"])
